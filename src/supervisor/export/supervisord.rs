//! A file of supervisord: a program for each process, and their group.
//!
//! Its file format has traps of its own: ` ;` and ` #` begin a comment also within quotes, `%` begins a name, and what
//! stands behind `environment=` has no way to quote a quote. So variables are given to `env`, and no blank stands in front of a
//! semicolon or a number sign.

use super::Site;
use super::plain_name;
use super::shell_quoted;

/// The file, by its name.
pub fn files(site: &Site) -> Result<Vec<(String, String)>, String> {
    let mut text = String::new();
    for service in &site.services {
        plain_name(&service.name, "supervisord")?;
        let mut words = vec!["/usr/bin/env".to_owned()];
        for (key, value) in &service.environment {
            if value.contains(['\n', '\r']) {
                return Err(format!("supervisord cannot have a line break in a variable: {key}"));
            }
            words.push(quoted(&format!("{key}={value}")));
        }
        words.extend(["/bin/sh".to_owned(), "-c".to_owned(), quoted(&service.command)]);
        text.push_str(&format!(
            "[program:{}]\ncommand={}\ndirectory={}\nautorestart=unexpected\nstopsignal=TERM\nstopwaitsecs=10\n\
             stopasgroup=true\nkillasgroup=true\nredirect_stderr=true\n\n",
            service.name,
            words.join(" ").replace('%', "%%"),
            site.home.replace('%', "%%"),
        ));
    }
    let names: Vec<&str> = site.services.iter().map(|service| service.name.as_str()).collect();
    text.push_str(&format!("[group:{}]\nprograms={}\n", site.app, names.join(",")));
    Ok(vec![(format!("{}.conf", site.app), text)])
}

/// A word for supervisord's splitting, which is a shell's.
fn quoted(word: &str) -> String {
    let mut text = shell_quoted(word);
    for blank in [' ', '\t'] {
        for comment in [';', '#'] {
            // Two quotes are nothing to the splitting.
            text = text.replace(&format!("{blank}{comment}"), &format!("{blank}''{comment}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::export::tests::site;

    #[test]
    fn programs_are_written_around_the_traps_of_the_format() {
        let site = site(&[("web", "date +%s ; exec it's # all"), ("db", "x")], &[("K", "a;b \"c\"")]);
        let files = files(&site).unwrap();
        assert_eq!(files[0].0, "app.conf");
        let head = "[program:web]\ncommand=/usr/bin/env 'K=a;b \"c\"' /bin/sh -c \
                    'date +%%s ''; exec it'\\''s ''# all'\ndirectory=/srv/my app\n";
        assert!(files[0].1.starts_with(head), "{}", files[0].1);
        assert!(files[0].1.ends_with("[group:app]\nprograms=web,db\n"));
    }

    #[test]
    fn a_shell_splits_the_command_into_the_words_that_were_meant() {
        let word = "a ;b # c 'd' \t;e";
        let said = std::process::Command::new("sh").args(["-c", &format!("printf %s {}", quoted(word))]).output();
        assert_eq!(said.unwrap().stdout, word.as_bytes());
        assert!(!quoted(word).contains(" ;") && !quoted(word).contains(" #") && !quoted(word).contains("\t;"));
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        assert!(files(&site(&[("a:b", "x")], &[])).unwrap_err().contains("\"a:b\""));
        assert!(files(&site(&[("a", "x")], &[("K", "1\n2")])).unwrap_err().contains("line break in a variable: K"));
    }
}
