//! The help page, the usage lines and the version, of `etcd` and of `quorate server`.

use std::fmt::Write as _;

use crate::common::version::ETCD_VERSION;
use crate::common::version::QUORATE_VERSION;
use crate::server::config::Personality;
use crate::server::config::exit::Exit;
use crate::server::config::flags::Kind;
use crate::server::config::flags::SECTIONS;
use crate::server::config::flags::Support;

impl Personality {
    /// How the program is called in texts.
    pub fn program(self) -> &'static str {
        match self {
            Personality::Etcd => "etcd",
            Personality::Native => "quorate server",
        }
    }
}

/// The head of the help page.
pub fn usage(personality: Personality) -> String {
    let program = personality.program();
    format!(
        "Usage:\n\n  {program} [flags]\n    Start a member of a cluster.\n\n  {program} --version\n    Show the version.\n\n  \
         {program} --help\n    Show every flag. Each can be given as an environment variable too: --data-dir is ETCD_DATA_DIR.\n\n"
    )
}

/// etcd prints the head to stderr and the flags to stdout; the native form keeps one page on stdout.
pub fn exit(personality: Personality) -> Exit {
    let (head, flags) = (usage(personality), flag_list());
    match personality {
        Personality::Etcd => Exit { code: 0, stdout: flags, stderr: head },
        Personality::Native => Exit { code: 0, stdout: format!("{head}{flags}"), stderr: String::new() },
    }
}

fn flag_list() -> String {
    let mut page = String::new();
    for section in &SECTIONS {
        let _ = writeln!(page, "{}:\n", section.title);
        for flag in section.flags {
            let shown = match flag.kind {
                Kind::Bool | Kind::Unsigned | Kind::Unsigned32 | Kind::Signed | Kind::Duration => {
                    flag.default.to_owned()
                }
                _ => format!("'{}'", flag.default),
            };
            let remark = match flag.support {
                Support::Served => "",
                Support::NoEffect => " (Accepted; without effect.)",
                Support::Later => " (Not supported by this release.)",
            };
            let _ = writeln!(page, "  --{} {shown}\n    {}{remark}", flag.name, flag.help);
        }
        page.push('\n');
    }
    page
}

/// etcd's four lines. There is no Go here; the lines are kept because scripts cut them.
pub fn version(personality: Personality) -> String {
    match personality {
        Personality::Etcd => format!(
            "etcd Version: {ETCD_VERSION}\nGit SHA: quorate-{QUORATE_VERSION}\nGo Version: none\nGo OS/Arch: {}/{}\n",
            std::env::consts::OS,
            go_architecture()
        ),
        Personality::Native => format!("quorate {QUORATE_VERSION} (etcd {ETCD_VERSION})\n"),
    }
}

fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
