//! `ETCDCTL_*`: options from the environment, and what is said of variables that fit none (ctl.md 2.2).

use super::Personality;
use super::error::CtlError;
use super::error::Exit;
use super::flags::Flag;
use super::flags::Values;
use super::log;

/// Environment variables in the order the process got them.
pub type Variables = Vec<(String, String)>;

/// What etcdctl's environment starts with.
const PREFIX: &str = "ETCDCTL_";

/// etcd's words, with the parenthesis that it doubles.
const CONFLICT: &str = "conflicting environment variable is shadowed by corresponding command-line flag \
                        (either unset environment variable or disable flag))";

/// The variable of a flag: `ETCDCTL_WRITE_OUT` for `write-out`.
pub fn variable(flag: &str) -> String {
    format!("{PREFIX}{}", flag.to_uppercase().replace('-', "_"))
}

/// Fills in `flags` that the command line does not name. Returns the lines to tell on standard error.
pub fn apply(
    values: &mut Values,
    flags: &[&'static Flag],
    variables: &Variables,
    personality: Personality,
) -> Result<String, CtlError> {
    let mut used = Vec::new();
    let mut shadowed = Vec::new();
    for flag in flags {
        let name = variable(flag.name);
        let given = values.entries().iter().any(|entry| entry.flag.name == flag.name && entry.changed);
        if given {
            shadowed.push(name);
        } else if let Some((_, text)) = variables.iter().find(|(known, text)| *known == name && !text.is_empty()) {
            if !values.set_from_environment(flag.name, text) && personality == Personality::Native {
                return Err(CtlError::bad_arguments(format!(
                    "environment variable {name} has no usable value {text:?}"
                )));
            }
            used.push(name);
        }
    }
    let mut told = String::new();
    for (name, text) in variables.iter().filter(|(name, _)| name.starts_with(PREFIX) && !used.contains(name)) {
        match personality {
            Personality::Etcdctl if shadowed.contains(name) => {
                let line = log::Line::new("fatal").caller("flags/flag.go:86").message(CONFLICT);
                let line = line.text("environment-variable", name).end();
                return Err(CtlError::Raw { exit: Exit::Failed, text: told + &line });
            }
            Personality::Etcdctl => {
                let line =
                    log::Line::new("warn").caller("flags/flag.go:94").message("unrecognized environment variable");
                told += &line.text("environment-variable", &format!("{name}={text}")).end();
            }
            // Scripts set it everywhere; only the value that asks for the old tool cannot be served.
            Personality::Native if name == "ETCDCTL_API" && text == "2" => {
                return Err(CtlError::failed(
                    "ETCDCTL_API=2 asks for the v2 API, which is gone: unset it or set it to 3",
                ));
            }
            // A flag wins over the environment, and a stray variable is nobody's mistake.
            Personality::Native => {}
        }
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ctl::root::ROOT;

    fn settle(
        args: &[&str],
        variables: &[(&str, &str)],
        personality: Personality,
    ) -> (Values, Result<String, CtlError>) {
        let args: Vec<Bytes> = args.iter().map(|arg| Bytes::copy_from_slice(arg.as_bytes())).collect();
        let flags: Vec<&'static Flag> = ROOT.inherited.iter().collect();
        let (mut values, _) = Values::parse(&flags, &args).unwrap_or_else(|error| panic!("{error:?}"));
        let variables = variables.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect();
        let told = apply(&mut values, &flags, &variables, personality);
        (values, told)
    }

    #[test]
    fn variables_fill_in_what_flags_leave_open() {
        let variables = [("ETCDCTL_ENDPOINTS", "a:1,b:2"), ("ETCDCTL_HEX", "bogus"), ("HOME", "/")];
        let (values, told) = settle(&[], &variables, Personality::Etcdctl);
        assert_eq!(told.expect("no conflict"), "");
        assert_eq!(values.list("endpoints"), ["a:1", "b:2"]);
        assert!(!values.bool("hex"));
    }

    #[test]
    fn a_flag_and_its_variable_are_fatal_in_etcdctl_only() {
        for text in ["json", "", "bogus"] {
            let (_, told) = settle(&["-w", "json"], &[("ETCDCTL_WRITE_OUT", text)], Personality::Etcdctl);
            let error = told.expect_err("must conflict");
            assert_eq!(error.exit_code(), 1);
            assert!(error.message().starts_with("{\"level\":\"fatal\",\"ts\":\""), "{}", error.message());
            assert!(error.message().contains("disable flag))\",\"environment-variable\":\"ETCDCTL_WRITE_OUT\""));
        }
        let (values, told) = settle(&["-w", "json"], &[("ETCDCTL_WRITE_OUT", "fields")], Personality::Native);
        assert_eq!((values.text("write-out"), told.expect("flag wins").as_str()), ("json", ""));
    }

    #[test]
    fn variables_that_fit_nothing_are_told_with_their_value() {
        let check = |name: &str, text: &str| {
            let told = settle(&[], &[(name, text)], Personality::Etcdctl).1.expect("no conflict");
            assert!(told.contains("\"msg\":\"unrecognized environment variable\""), "{told}");
            assert!(told.ends_with(&format!("\"environment-variable\":\"{name}={text}\"}}\n")), "{told}");
        };
        check("ETCDCTL_API", "3");
        check("ETCDCTL_API", "2");
        check("ETCDCTL_ENDPOINTS", "");
        check("ETCDCTL_FOO", "1");
        assert_eq!(settle(&[], &[("ETCDCTL_API", "3")], Personality::Native).1.expect("swallowed"), "");
        assert!(settle(&[], &[("ETCDCTL_API", "2")], Personality::Native).1.is_err());
    }
}
