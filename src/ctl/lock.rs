//! `lock`: takes a named lock and holds it until a signal comes or a program has ended (ctl.md 5.2).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitStatus;
use std::process::Stdio;

use bytes::Bytes;
use tokio::process::Command as Child;

use super::Personality;
use super::child;
use super::command::Action;
use super::command::Command;
use super::error::CtlError;
use super::flags::Flag;
use super::flags::Kind;
use super::log::Line;
use super::session::Session;
use super::turn;
use super::turn::Turn;
use crate::common::concurrency::DEFAULT_TTL_SECONDS;
use crate::common::concurrency::Place;
use crate::common::concurrency::Queue;

pub static COMMAND: Command = Command {
    name: "lock",
    arguments: "<lockname> [exec-command arg1 arg2 ...]",
    summary: "Holds a lock, or runs a program while it holds one",
    flags: &[Flag::new("ttl", Kind::Int, "10", "seconds after which the lock is free if this client is gone")],
    inherited: &[],
    action: Action::Run(run),
};

/// What the program is told of the lock.
const KEY_VARIABLE: &str = "ETCD_LOCK_KEY";
const REVISION_VARIABLE: &str = "ETCD_LOCK_REV";

/// The exit code of a program that a signal ended: Go's -1, as the system shortens it.
const KILLED: u8 = 255;

fn run(session: &mut Session<'_>) -> Result<(), CtlError> {
    let [name, command @ ..] = &session.args[..] else {
        return Err(CtlError::bad_arguments("lock takes a lock name argument and an optional command to execute"));
    };
    let (queue, command) = (Queue::new(name), command.to_vec());
    let client = session.connect()?;
    let mut turn = Turn::begin(session, &client, ttl(session))?;
    let entering = queue.enter(&client, turn.lease.lease(), Bytes::new());
    let (place, header) = session.wait(turn.take(&queue, entering))?;
    if let [program, args @ ..] = &command[..] {
        let ended = session.wait(turn.lease.during(execute(program, args, &place, header.revision)));
        let left = session.wait(turn.leave(&place));
        return ended.and(left);
    }
    let response = turn.read(session, &place)?;
    if response.kvs.is_empty() {
        return Err(CtlError::failed("lock lost on init"));
    }
    turn::show(session, &response)?;
    session.wait(turn.hold("session expired"))?;
    session.wait(turn.leave(&place))
}

/// `--ttl`; one that is no time is told of and means the default of sessions, not that of the flag.
fn ttl(session: &Session<'_>) -> i64 {
    let ttl = session.values.int("ttl");
    if ttl > 0 {
        return ttl;
    }
    match session.personality() {
        Personality::Native => {
            session.console.tell(&format!("Note: --ttl={ttl} is no time; taken for {DEFAULT_TTL_SECONDS}\n"));
        }
        Personality::Etcdctl if session.warns() => {
            let line = Line::new("warn").text("logger", "etcd-client").caller("concurrency/session.go:128");
            let line = line.message("WithTTL(): TTL should be > 0, preserving current TTL");
            session.console.tell(&line.number("current-session-ttl", DEFAULT_TTL_SECONDS as u32).end());
        }
        Personality::Etcdctl => {}
    }
    DEFAULT_TTL_SECONDS
}

/// Runs the program to its end, whatever becomes of the lock.
async fn execute(program: &Bytes, args: &[Bytes], place: &Place, revision: i64) -> Result<(), CtlError> {
    let mut command = Child::new(OsStr::from_bytes(program));
    command.args(args.iter().map(|arg| OsStr::from_bytes(arg))).stdin(Stdio::null());
    let revision = revision.to_string();
    for (name, value) in [(KEY_VARIABLE, place.key.as_ref()), (REVISION_VARIABLE, revision.as_bytes())] {
        // What stands in our own environment wins (ctl.md 5.2).
        if std::env::var_os(name).is_none() {
            command.env(name, OsStr::from_bytes(value));
        }
    }
    match command.status().await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(CtlError::Child { code: code(status), text: child::ended(status) }),
        Err(error) => Err(CtlError::failed(child::not_started(program, &error))),
    }
}

fn code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(KILLED)
}
