//! What a run begins with: timing, ports, relays, members that serve, and everyone who will talk to them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use crate::client::Client as Asking;
use crate::client::Config;
use crate::client::Deadline;
use crate::disk::sim::Dice;
use crate::faults::kind::Kind;
use crate::faults::network::Network;
use crate::faults::ports::free_port;
use crate::faults::volume::Volume;
use crate::proto::etcdserverpb::RangeRequest;
use crate::torture::clients::Client;
use crate::torture::clients::Record;
use crate::torture::lockers::Locker;
use crate::torture::member;
use crate::torture::member::Common;
use crate::torture::member::Member;
use crate::torture::member::Ports;
use crate::torture::runner::Interrupts;
use crate::torture::runner::PATIENCE;
use crate::torture::runner::PROBES;
use crate::torture::runner::STATUS_MAX;
use crate::torture::runner::Setup;
use crate::torture::runner::TICK;
use crate::torture::watchers::Watcher;
use crate::torture::workload::Workload;

/// Every such client talks to all members in turn.
const WANDERS: usize = 4;

/// Timing and snapshots as the seed has them, as far as the program knows the flags.
pub fn flags_of(setup: &Setup) -> Vec<String> {
    let mut dice = Dice::new(setup.seed.wrapping_add(1));
    let (heartbeat, election) = dice.pick(&[(30, 300), (50, 500), (100, 1000)]);
    let (count, catchup) = dice.pick(&[(50, 10), (50, 40), (100, 50)]);
    let known = [
        ("--heartbeat-interval", heartbeat),
        ("--election-timeout", election),
        ("--snapshot-count", count),
        ("--snapshot-catchup-entries", catchup),
    ];
    let known = known.into_iter().filter(|(flag, _)| member::knows_flag(&setup.binary, flag.trim_start_matches('-')));
    let mut flags: Vec<String> = known.flat_map(|(flag, value)| [flag.to_owned(), value.to_string()]).collect();
    flags.extend(setup.flags.iter().cloned());
    flags
}

/// Ports, relays and members, none started.
pub async fn prepare(setup: &Setup, flags: &[String]) -> Result<(Vec<Member>, Network), String> {
    let told = |error: std::io::Error| error.to_string();
    let mut ports = Vec::new();
    for _ in 0..setup.members {
        let port = || free_port().map_err(told);
        ports.push(Ports { client: port()?, peer: port()?, relay: port()? });
    }
    let initial: Vec<String> =
        ports.iter().enumerate().map(|(number, ports)| Member::initial_entry(number, *ports)).collect();
    let common = Common {
        launcher: setup.launcher.clone(),
        binary: setup.binary.clone(),
        dir: setup.dir.clone(),
        initial: initial.join(","),
        flags: flags.to_vec(),
    };
    let relays: Vec<(u16, u16)> = ports.iter().map(|ports| (ports.relay, ports.peer)).collect();
    let network = Network::start(&relays).await.map_err(told)?;
    let mut members: Vec<Member> =
        ports.iter().enumerate().map(|(number, ports)| Member::new(number, *ports, &common)).collect();
    if setup.kinds.iter().any(|kind| kind.needs_root()) {
        for member in &mut members {
            let volume = Volume::new(&member.dir());
            member.volume = Some(volume.map_err(|error| format!("cannot make a file system of its own: {error}"))?);
        }
    }
    Ok((members, network))
}

/// Starts all and waits until each serves; tells the relays who they are.
pub async fn first_start(members: &mut [Member], network: &Network, interrupts: &Interrupts) -> Result<(), String> {
    for member in members.iter_mut() {
        member.start().map_err(|error| format!("cannot start {}: {error}", member.name))?;
    }
    let deadline = Instant::now() + PATIENCE;
    for at in 0..members.len() {
        loop {
            members.iter_mut().try_for_each(Member::look)?;
            let client = Asking::open(Config::new(vec![members[at].endpoint()])).map_err(|error| error.to_string())?;
            let status = client.status(Deadline::after(STATUS_MAX)).await;
            let served =
                client.range(RangeRequest { key: "k".into(), ..RangeRequest::default() }, Deadline::after(STATUS_MAX));
            if let (Ok(status), Ok(_)) = (status, served.await) {
                members[at].id = status.header.map_or(0, |header| header.member_id);
                network.name(at, members[at].id);
                break;
            }
            if interrupts.load(Ordering::Relaxed) > 0 {
                return Err("interrupted before the cluster served".to_owned());
            }
            if Instant::now() > deadline {
                return Err(format!("{} does not serve after {} s", members[at].name, PATIENCE.as_secs()));
            }
            tokio::time::sleep(TICK).await;
        }
    }
    Ok(())
}

pub fn clients_of(setup: &Setup, endpoints: &[String], record: &Arc<Record>) -> Vec<Client> {
    let interval = Duration::from_secs_f64(setup.clients as f64 / f64::from(setup.rate));
    let client = |number: usize| {
        let wanders = number % WANDERS == WANDERS - 1;
        let own = endpoints[number % endpoints.len()].clone();
        Client {
            endpoints: if wanders { endpoints.to_vec() } else { vec![own] },
            workload: Workload::new(number, setup.seed, setup.keys, setup.kinds.contains(&Kind::Compact)),
            dice: Dice::new(setup.seed.wrapping_mul(31).wrapping_add(number as u64)),
            interval,
            record: Arc::clone(record),
        }
    };
    (0..setup.clients).map(client).collect()
}

pub fn watchers_of(setup: &Setup, endpoints: &[String], record: &Arc<Record>) -> Vec<Watcher> {
    let watcher = |number: usize| {
        let wanders = number % WANDERS == WANDERS - 1;
        let own = endpoints[number % endpoints.len()].clone();
        let endpoints = if wanders { endpoints.to_vec() } else { vec![own] };
        let dice = Dice::new(setup.seed.wrapping_mul(37).wrapping_add(number as u64));
        Watcher::new(endpoints, setup.keys, dice, Arc::clone(record))
    };
    (0..setup.watchers).map(watcher).collect()
}

pub fn lockers_of(setup: &Setup, endpoints: &[String], record: &Arc<Record>) -> Vec<Locker> {
    let locker = |locker: usize| {
        let wanders = locker % WANDERS == WANDERS - 1;
        let own = endpoints[locker % endpoints.len()].clone();
        let endpoints = if wanders { endpoints.to_vec() } else { vec![own] };
        let dice = Dice::new(setup.seed.wrapping_mul(41).wrapping_add(locker as u64));
        // Behind the clients and those who only probe.
        let number = setup.clients + PROBES + locker;
        Locker::new(locker, number, endpoints, dice, Arc::clone(record))
    };
    (0..setup.lockers).map(locker).collect()
}
