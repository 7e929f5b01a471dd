//! The columns of the left side: as many as the room allows, the most wanted first.

use unicode_width::UnicodeWidthStr;

use super::text::showable;
use crate::supervisor::control::messages::ProcessStatus;
use crate::supervisor::control::vocabulary::StateName;
use crate::supervisor::native::table;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    Name,
    State,
    /// Of members.
    Role,
    Health,
    Pid,
    Restarts,
    Uptime,
    Cpu,
    Rss,
}

/// The first two are always there.
const BY_WANT: [Column; 9] = [
    Column::Name,
    Column::State,
    Column::Role,
    Column::Health,
    Column::Pid,
    Column::Restarts,
    Column::Uptime,
    Column::Cpu,
    Column::Rss,
];
const ALWAYS: usize = 2;
/// Longer names and states are cut.
const WIDTH_MAX: usize = 24;

impl Column {
    pub fn heading(self) -> &'static str {
        match self {
            Column::Name => "NAME",
            Column::State => "STATE",
            Column::Role => "ROLE",
            Column::Health => "HEALTH",
            Column::Pid => "PID",
            Column::Restarts => "RESTARTS",
            Column::Uptime => "UPTIME",
            Column::Cpu => "CPU",
            Column::Rss => "RSS",
        }
    }

    /// Room for what mostly stands there, so that columns do not jump with every change.
    fn width_min(self) -> usize {
        match self {
            Column::Name => "NAME".len(),
            Column::State => "paused 59s".len(),
            Column::Health => "no answer".len(),
            Column::Role => "candidate".len(),
            Column::Restarts => "RESTARTS".len(),
            Column::Pid | Column::Uptime | Column::Cpu | Column::Rss => "100.0%".len(),
        }
    }

    fn width(self, processes: &[ProcessStatus]) -> usize {
        let widths = processes.iter().map(|process| self.cell(process).width());
        widths.max().unwrap_or_default().clamp(self.width_min(), WIDTH_MAX)
    }

    pub fn cell(self, process: &ProcessStatus) -> String {
        let (view, usage) = (&process.view, process.usage.as_ref());
        let known = match self {
            Column::Name => Some(showable(&view.name)),
            Column::State => Some(table::state(process)),
            Column::Role => process.member.as_ref().map(|member| member.role.to_string()),
            Column::Health => health(process).map(str::to_owned),
            Column::Pid => usage.map(table::pid).or_else(|| view.group.map(|group| group.to_string())),
            Column::Restarts => Some(view.restarts.to_string()),
            Column::Uptime => view.uptime_ms.map(table::span),
            Column::Cpu => usage.and_then(|usage| usage.cpu_percent).map(|percent| format!("{percent:.1}%")),
            Column::Rss => usage.map(|usage| table::size(usage.rss_bytes)),
        };
        known.unwrap_or_else(|| "-".to_owned())
    }
}

/// Whether what runs also works: what its probe says, and a member itself. `None` where nobody looks.
fn health(process: &ProcessStatus) -> Option<&'static str> {
    let view = &process.view;
    view.group?;
    match (view.state, &process.member, &process.member_error) {
        (StateName::Unhealthy, _, _) => Some("failing"),
        (StateName::Pending | StateName::Starting | StateName::Stopping, _, _) => None,
        (_, _, Some(_)) => Some("no answer"),
        (_, Some(member), None) if member.leader_id == 0 => Some("no leader"),
        (_, Some(member), None) if !member.errors.is_empty() => Some("alarm"),
        (_, Some(_), None) | (StateName::Ready, None, None) => Some("ok"),
        (_, None, None) => None,
    }
}

/// The columns for so much room, with their widths; one blank stands between two of them.
pub fn fitting(processes: &[ProcessStatus], room: usize) -> Vec<(Column, usize)> {
    let members = processes.iter().any(|process| process.is_member);
    let mut columns = Vec::new();
    let mut used = 0;
    for column in BY_WANT.into_iter().filter(|column| members || *column != Column::Role) {
        let width = column.width(processes);
        let gap = usize::from(!columns.is_empty());
        if columns.len() >= ALWAYS && used + gap + width > room {
            break;
        }
        used += gap + width;
        columns.push((column, width));
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::native::table::sample;
    use crate::supervisor::native::table::sample_member;

    fn names(processes: &[ProcessStatus], room: usize) -> Vec<&'static str> {
        fitting(processes, room).into_iter().map(|(column, _)| column.heading()).collect()
    }

    #[test]
    fn columns_come_as_room_allows() {
        let members = [sample_member("etcd1"), sample("web", StateName::Ready)];
        assert_eq!(names(&members, 0), ["NAME", "STATE"]);
        assert_eq!(names(&members, 40), ["NAME", "STATE", "ROLE", "HEALTH"]);
        assert_eq!(names(&members, 200).len(), BY_WANT.len());
        let others = [sample("web", StateName::Ready)];
        assert_eq!(names(&others, 41), ["NAME", "STATE", "HEALTH", "PID", "RESTARTS"]);
        let widths: usize = fitting(&members, 60).iter().map(|(_, width)| width + 1).sum();
        assert!(widths <= 61, "{widths}");
        let long = [sample(&"n".repeat(100), StateName::Ready)];
        assert_eq!(fitting(&long, 100)[0], (Column::Name, WIDTH_MAX));
    }

    #[test]
    fn health_is_what_the_probe_and_the_member_say() {
        let of = |change: &dyn Fn(&mut ProcessStatus)| {
            let mut process = sample_member("etcd1");
            change(&mut process);
            Column::Health.cell(&process)
        };
        assert_eq!(of(&|_| {}), "ok");
        assert_eq!(of(&|process| process.view.state = StateName::Unhealthy), "failing");
        assert_eq!(of(&|process| process.view.group = None), "-");
        let silent = |process: &mut ProcessStatus| {
            process.member = None;
            process.member_error = Some("timed out".to_owned());
        };
        assert_eq!(of(&silent), "no answer");
        assert_eq!(of(&|process| process.member.as_mut().unwrap().leader_id = 0), "no leader");
        assert_eq!(of(&|process| process.member.as_mut().unwrap().errors.push("NOSPACE".to_owned())), "alarm");
        let mut web = sample("web", StateName::Running);
        web.view.group = Some(7);
        assert_eq!(Column::Health.cell(&web), "-", "nobody looks");
        assert_eq!((Column::Pid.cell(&web), Column::Role.cell(&web)), ("7".to_owned(), "-".to_owned()));
        web.view.state = StateName::Ready;
        assert_eq!(Column::Health.cell(&web), "ok");
    }
}
