//! A file of docker compose: a service for each process.
//!
//! The services share the host's network and the stack's directory under its own path, so commands mean what they mean in
//! the Procfile. The image is to be named: `QUORATE_IMAGE=... docker compose up`.

use super::Site;
use super::plain_name;

/// The file, by its name.
pub fn files(site: &Site) -> Result<Vec<(String, String)>, String> {
    let mut text = format!("name: {}\nservices:\n", quoted(&project(&site.app)));
    for service in &site.services {
        plain_name(&service.name, "docker compose")?;
        text.push_str(&format!(
            "  {}:\n    image: \"${{QUORATE_IMAGE:-quorate:latest}}\"\n    entrypoint: [\"/bin/sh\", \"-c\"]\n    command: [{}]\n    \
             working_dir: {}\n    network_mode: host\n    init: true\n    restart: on-failure\n    \
             stop_grace_period: 10s\n    volumes:\n      - type: bind\n        source: {}\n        target: {}\n",
            quoted(&service.name),
            quoted(&service.command),
            quoted(&site.home),
            quoted(&site.home),
            quoted(&site.home),
        ));
        // The image has a search path of its own.
        let variables = service.environment.iter().filter(|(key, _)| key != "PATH");
        let lines: String =
            variables.map(|(key, value)| format!("      {}: {}\n", quoted(key), quoted(value))).collect();
        if !lines.is_empty() {
            text.push_str(&format!("    environment:\n{lines}"));
        }
    }
    Ok(vec![("docker-compose.yaml".to_owned(), text)])
}

/// A project's name is of small letters.
fn project(app: &str) -> String {
    let name: String =
        app.to_ascii_lowercase().chars().map(|letter| if letter == '.' { '-' } else { letter }).collect();
    name.trim_start_matches(['-', '_']).to_owned()
}

/// A text as YAML and compose read it: in double quotes, with `$` doubled.
fn quoted(text: &str) -> String {
    super::yaml_quoted(&text.replace('$', "$$"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::yaml;
    use crate::common::yaml::Value;
    use crate::supervisor::export::tests::site;

    fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
        path.iter().fold(value, |value, key| match value {
            Value::Map(entries) => {
                &entries.iter().find(|entry| entry.key == *key).unwrap_or_else(|| panic!("{key}")).value
            }
            other => panic!("no map at {key}: {other:?}"),
        })
    }

    #[test]
    fn what_is_written_is_read_back() {
        let command = "echo \"$PORT\" 'it''s' \\n: # {x} \u{e4}";
        let files =
            files(&site(&[("web", command), ("db", "y")], &[("K", "a: b\n\"c\" $d"), ("PATH", "/bin")])).unwrap();
        let document = yaml::document(&files[0].1).unwrap();
        let web = at(&document, &["services", "web"]);
        let Value::List(words) = at(web, &["command"]) else { panic!("a list") };
        assert_eq!(words[0].text().unwrap(), command.replace('$', "$$"));
        assert_eq!(at(web, &["environment", "K"]).text().unwrap(), "a: b\n\"c\" $$d");
        assert_eq!(at(web, &["working_dir"]).text().unwrap(), "/srv/my app");
        let Value::Map(services) = at(&document, &["services"]) else { panic!("a map") };
        assert_eq!(services.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["web", "db"]);
        assert!(!files[0].1.contains("PATH"));
    }

    #[test]
    fn names_are_those_that_compose_takes() {
        assert!(files(&site(&[("a b", "x")], &[])).unwrap_err().contains("docker compose"));
        assert_eq!(project("My.App"), "my-app");
    }
}
