//! `quorate cluster`: a whole cluster of our own binary on this machine, as a Procfile, and started if that is wanted.
//!
//! ```text
//!  options ─▶ plan (ports, addresses, directories) ─┬─▶ certificates (--tls)
//!                                                   ├─▶ files: Procfile, lines for eval, JSON
//!                                                   └─▶ --run: the supervisor, with that Procfile
//!  join: what a learner's entry does before it is a member
//! ```

pub mod certificates;
pub mod files;
pub mod join;
pub mod plan;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::cluster::plan::Plan;
use crate::cluster::plan::Wish;
use crate::common::os_reason::os_reason;
use crate::program::Manner;
use crate::supervisor;

const EXIT_USAGE: u8 = 2;
/// The word behind which a learner's entry joins.
const JOIN: &str = "join";

/// Writes a Procfile for a cluster on this machine, and prints where it can be reached:
/// eval "$(quorate cluster --size 5 --learner 1)"
#[derive(Clone, Debug, Parser)]
#[command(name = "quorate cluster", disable_help_subcommand = true)]
#[command(
    after_help = "`quorate cluster join` is what the entry of a learner does; `quorate cluster join --help` shows it."
)]
struct Options {
    /// Voting members
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    size: u16,
    /// Members without a vote, which join when the others are up
    #[arg(long, default_value_t = 0, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(0..=5))]
    learner: u16,
    /// TLS for clients and between members, with an authority and certificates of the cluster's own
    #[arg(long)]
    tls: bool,
    /// Client port of the first member; each further one has it 10 higher [default: free ports]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    base_port: Option<u16>,
    /// Where members keep their data, each in a directory of its own
    #[arg(long, value_name = "DIR", default_value = ".quorate")]
    data_root: PathBuf,
    /// Let the supervisor's relays lie between the members, for partition, delay, drop and heal
    #[arg(long)]
    proxy_peers: bool,
    /// The file to write
    #[arg(short = 'f', long, value_name = "FILE", default_value = "Procfile")]
    file: PathBuf,
    /// Replace the file, and remove the data of its members
    #[arg(long)]
    force: bool,
    /// Start the cluster, and stay until it is stopped
    #[arg(long)]
    run: bool,
    /// Print what the cluster is as JSON, instead of lines for eval
    #[arg(long)]
    json: bool,
    /// Another program with etcd's flags for the members [default: quorate server]
    #[arg(long, value_name = "PROGRAM")]
    program: Option<String>,
    /// Further flags for every member, behind --
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

/// Runs the command line to its end.
pub fn main(words: Vec<OsString>) -> ExitCode {
    if words.first().is_some_and(|word| word == JOIN) {
        return join::main(words[1..].to_vec());
    }
    let options = match Options::try_parse_from(std::iter::once(OsString::from("quorate cluster")).chain(words)) {
        Ok(options) => options,
        Err(error) => {
            // Help and complaints; a reader that has gone wants neither.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE));
        }
    };
    if let Err(error) = generate(&options) {
        eprintln!("quorate cluster: {error}");
        return ExitCode::FAILURE;
    }
    match options.run {
        true => supervisor::main(vec!["up".into(), "-f".into(), options.file.into()], Manner::Native),
        false => ExitCode::SUCCESS,
    }
}

fn generate(options: &Options) -> Result<(), String> {
    let wish = Wish {
        voters: options.size,
        learners: options.learner,
        base_port: options.base_port,
        data_root: options.data_root.clone(),
        proxy_peers: options.proxy_peers,
        tls: options.tls,
        program: options.program.clone(),
        flags: options.flags.clone(),
    };
    let plan = Plan::new(&wish).map_err(|error| os_reason(&error))?;
    files::make_room(&options.file, &plan, options.force)?;
    if let Some(tls) = &plan.tls {
        certificates::make(tls)?;
    }
    files::write_procfile(&options.file, &files::procfile(&plan))?;
    let text = match options.json {
        true => {
            let mut whole = serde_json::to_value(&plan).map_err(|error| error.to_string())?;
            whole["procfile"] = options.file.to_string_lossy().into_owned().into();
            format!("{whole:#}\n")
        }
        false => files::exports(&plan),
    };
    let mut out = std::io::stdout();
    // A reader that has gone wants no more text.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if !options.run {
        let file = files::quoted(&options.file.to_string_lossy());
        eprintln!("wrote {file}; quorate supervisor up -d --wait -f {file} starts it");
    }
    Ok(())
}
