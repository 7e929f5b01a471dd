//! User units of systemd: a service for each process, and a target that has them all.

use std::fmt::Write;

use super::Service;
use super::Site;

/// The files, by their names.
pub fn files(site: &Site) -> Vec<(String, String)> {
    let target = format!("{}.target", escaped(&site.app));
    let services: Vec<String> = site.services.iter().map(|service| unit(site, service)).collect();
    let whole = format!(
        "[Unit]\nDescription={}\nWants={}\n\n[Install]\nWantedBy=default.target\n",
        percent(&site.app),
        services.join(" "),
    );
    let mut files = vec![(target.clone(), whole)];
    files.extend(site.services.iter().map(|one| (unit(site, one), service(site, one, &target))));
    files
}

fn unit(site: &Site, service: &Service) -> String {
    format!("{}-{}.service", escaped(&site.app), escaped(&service.name))
}

fn service(site: &Site, service: &Service, target: &str) -> String {
    let mut text = format!(
        "[Unit]\nDescription={} of {}\nPartOf={target}\n\n[Service]\nType=exec\nWorkingDirectory={}\n",
        percent(&service.name),
        percent(&site.app),
        percent(&site.home),
    );
    for (key, value) in &service.environment {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "Environment={}", quoted(&format!("{key}={value}"), false));
    }
    let _ = write!(
        text,
        "ExecStart=/bin/sh -c {}\nRestart=on-failure\nTimeoutStopSec=10\n\n[Install]\nWantedBy={target}\n",
        quoted(&service.command, true)
    );
    text
}

/// A word in double quotes. In a command `$` begins a variable of systemd's unless it is doubled; `%` begins a specifier
/// everywhere (systemd.service(5), "Command lines").
fn quoted(word: &str, in_command: bool) -> String {
    let mut text = String::from("\"");
    for letter in word.chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '\r' => text.push_str("\\r"),
            '%' => text.push_str("%%"),
            '$' if in_command => text.push_str("$$"),
            other => text.push(other),
        }
    }
    text.push('"');
    text
}

fn percent(text: &str) -> String {
    text.replace('%', "%%")
}

/// A part of a unit's name: what may not stand in one is written by its bytes (systemd.unit(5), "String escaping").
fn escaped(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' | b'-' => text.push(char::from(byte)),
            // Writing to a text cannot fail.
            other => drop(write!(text, "\\x{other:02x}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::supervisor::export::tests::site;

    #[test]
    fn units_are_quoted_as_systemd_reads_them() {
        let files =
            files(&site(&[("web", "printf '%s \"x\"' \"$PORT\" \\\\n"), ("a/b", "x")], &[("K", "1 % $x \"y\"\nz")]));
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["app.target", "app-web.service", "app-a\\x2fb.service"]);
        assert_eq!(
            files[1].1,
            "[Unit]\nDescription=web of app\nPartOf=app.target\n\n[Service]\nType=exec\nWorkingDirectory=/srv/my app\n\
             Environment=\"K=1 %% $x \\\"y\\\"\\nz\"\n\
             ExecStart=/bin/sh -c \"printf '%%s \\\"x\\\"' \\\"$$PORT\\\" \\\\\\\\n\"\nRestart=on-failure\n\
             TimeoutStopSec=10\n\n[Install]\nWantedBy=app.target\n"
        );
        assert!(files[0].1.contains("Wants=app-web.service app-a\\x2fb.service\n"));
    }

    #[test]
    fn systemd_finds_nothing_wrong() {
        let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
            eprintln!("no systemd-analyze here");
            return;
        };
        assert!(version.status.success());
        let dir = tempfile::tempdir().unwrap();
        let mut site = site(&[("web", "exec sleep 100 # 'x' \"y\" $HOME 50%"), ("a/b", "x; y")], &[("K", "a b")]);
        site.home = dir.path().to_str().unwrap().to_owned();
        let paths: Vec<_> = files(&site)
            .into_iter()
            .map(|(name, text)| {
                let path = dir.path().join(name);
                std::fs::write(&path, text).unwrap();
                path
            })
            .collect();
        let runtime = dir.path().join("run");
        std::fs::create_dir(&runtime).unwrap();
        let verify = Command::new("systemd-analyze")
            .args(["--user", "--man=no", "verify"])
            .args(&paths)
            .env("XDG_RUNTIME_DIR", &runtime)
            .env("HOME", dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&verify.stderr).into_owned();
        // It speaks of the machine's own units, too.
        let ours: Vec<&str> = said.lines().filter(|line| line.contains("app")).collect();
        assert!(ours.is_empty(), "{said}");
    }
}
