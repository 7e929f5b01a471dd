//! What `top` shows. Pure: news and keys go in, wishes come out, and it draws itself.
//!
//! ```text
//!  /d/Procfile · supervisor 7, up 3m2s           2 links changed      heading
//!  NAME  STATE   ROLE     HEALTH   │ m1 · follows                     processes │ log of the chosen one
//!  m1    ready   leader   ok       │ 14:39:42.123 INFO  elected …
//!  kill m1: killed                                                    what came of the last key
//!  q quit ? keys ↑↓ choose p pause x kill …                           help
//! ```
//!
//! Small windows lose first what is said elsewhere: help, then the heading, then the status line, then the log.

use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::crossterm::event::KeyEvent;
use ratatui::crossterm::event::KeyModifiers;
use ratatui::layout::Constraint;
use ratatui::layout::Rect;
use ratatui::style::Color;
use ratatui::style::Style;
use ratatui::style::Stylize;
use ratatui::text::Line;
use ratatui::text::Span;
use ratatui::widgets::Block;
use ratatui::widgets::Borders;
use ratatui::widgets::Clear;
use ratatui::widgets::Paragraph;
use ratatui::widgets::Row;
use ratatui::widgets::Table;
use ratatui::widgets::TableState;
use unicode_width::UnicodeWidthStr;

use super::columns;
use super::keys;
use super::keys::Wish;
use super::log::Layout;
use super::log::Log;
use super::log::Tone;
use super::text;
use crate::supervisor::control::messages::ProcessStatus;
use crate::supervisor::control::messages::Status;
use crate::supervisor::control::messages::SupervisorView;
use crate::supervisor::control::vocabulary::StateName;
use crate::supervisor::native::table;
use crate::supervisor::output::store::Followed;

/// Columns that a log needs to be of use beside the processes.
const LOG_WIDTH_MIN: u16 = 16;
/// Less of the Procfile's path says nothing.
const PATH_WIDTH_MIN: usize = 12;
/// Rows from which there is a status line, a heading, a line of help.
const STATUS_FROM: u16 = 3;
const HEADING_FROM: u16 = 5;
const HELP_FROM: u16 = 6;

/// How what is said is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Waiting,
    Done,
    Failed,
}

/// Who has the width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum View {
    #[default]
    Both,
    Log,
    Processes,
}

impl View {
    fn next(self) -> View {
        match self {
            View::Both => View::Log,
            View::Log => View::Processes,
            View::Processes => View::Both,
        }
    }
}

/// Everything that is shown.
#[derive(Debug, Default)]
pub struct Screen {
    supervisor: Option<SupervisorView>,
    processes: Vec<ProcessStatus>,
    table: TableState,
    log: Log,
    said: (Mood, String),
    /// Why what is shown may be old.
    trouble: Option<String>,
    /// Links between members that are not as they should be.
    links_changed: usize,
    wraps: bool,
    /// Logs in JSON are shown as they were printed.
    verbatim: bool,
    view: View,
    helps: bool,
}

impl Screen {
    pub fn set_status(&mut self, status: Status) {
        self.supervisor = Some(status.supervisor);
        self.processes = status.processes;
        self.trouble = None;
        let last = self.processes.len().saturating_sub(1);
        self.table.select((!self.processes.is_empty()).then(|| self.table.selected().unwrap_or(0).min(last)));
    }

    /// States without what members say and what processes use: of those that are the same still, that is kept.
    pub fn set_states(&mut self, mut status: Status) {
        for process in &mut status.processes {
            let of_same =
                |old: &&ProcessStatus| old.view.name == process.view.name && old.view.group == process.view.group;
            if let Some(old) = self.processes.iter().find(of_same) {
                process.usage = old.usage.clone();
                process.member = old.member.clone();
                process.member_error = old.member_error.clone();
            }
        }
        self.set_status(status);
    }

    pub fn set_trouble(&mut self, text: String) {
        self.trouble = Some(text);
    }

    pub fn set_links_changed(&mut self, count: usize) {
        self.links_changed = count;
    }

    pub fn say(&mut self, mood: Mood, text: &str) {
        self.said = (mood, text::showable(text.trim_end()));
    }

    pub fn add_line(&mut self, line: Followed) {
        self.log.add(line);
    }

    pub fn clear_lines(&mut self) {
        self.log.clear();
    }

    pub fn chosen(&self) -> Option<&str> {
        self.chosen_process().map(|process| process.view.name.as_str())
    }

    fn chosen_process(&self) -> Option<&ProcessStatus> {
        self.processes.get(self.table.selected()?)
    }

    fn has_members(&self) -> bool {
        self.processes.iter().any(|process| process.is_member)
    }

    pub fn press(&mut self, key: KeyEvent) -> Option<Wish> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Some(Wish::Leave),
                KeyCode::Char('l') => Some(Wish::Redraw),
                KeyCode::Char('z') => Some(Wish::Suspend),
                _ => None,
            };
        }
        // Alt with a letter is no wish to kill.
        if key.modifiers.intersects(KeyModifiers::ALT | KeyModifiers::SUPER | KeyModifiers::META) {
            return None;
        }
        if std::mem::take(&mut self.helps) {
            return None;
        }
        match key.code {
            KeyCode::Char('q') => return Some(Wish::Leave),
            KeyCode::Char('?') => self.helps = true,
            KeyCode::Down | KeyCode::Char('j') => self.choose(1),
            KeyCode::Up | KeyCode::Char('k') => self.choose(-1),
            KeyCode::Enter => self.view = self.view.next(),
            KeyCode::Esc => self.view = View::Both,
            KeyCode::Char('w') => self.wraps = !self.wraps,
            KeyCode::Char('v') => self.verbatim = !self.verbatim,
            KeyCode::PageUp => self.log.page_up(),
            KeyCode::PageDown => self.log.page_down(),
            KeyCode::Home => self.log.home(),
            KeyCode::End => self.log.end(),
            KeyCode::Char(letter) => return keys::wish(letter, self.chosen_process()?),
            _ => {}
        }
        None
    }

    fn choose(&mut self, step: isize) {
        let Some(at) = self.table.selected() else { return };
        let last = self.processes.len().saturating_sub(1);
        self.table.select(Some(at.saturating_add_signed(step).min(last)));
    }

    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let mut main = area;
        let mut take = |from: u16, at_top: bool| {
            if area.height < from {
                return None;
            }
            let row = if at_top { main.y } else { main.bottom() - 1 };
            main.y += u16::from(at_top);
            main.height -= 1;
            Some(Rect { y: row, height: 1, ..area })
        };
        let help = take(HELP_FROM, false);
        let status = take(STATUS_FROM, false);
        let heading = take(HEADING_FROM, true);
        if let Some(row) = heading {
            frame.render_widget(self.heading(usize::from(row.width)), row);
        }
        self.draw_main(frame, main);
        if let Some(row) = status {
            frame.render_widget(self.status(usize::from(row.width)), row);
        }
        if let Some(row) = help {
            let keys = keys::help_line(self.chosen_process(), self.has_members(), usize::from(row.width));
            let spans = keys
                .into_iter()
                .flat_map(|(key, what)| [Span::from(format!(" {key}")).bold(), format!(" {what}").dim()]);
            frame.render_widget(Line::from_iter(spans), row);
        }
        if self.helps {
            draw_help(frame, area);
        }
    }

    fn heading(&self, width: usize) -> Line<'static> {
        let Some(supervisor) = &self.supervisor else { return Line::from(" asking the supervisor …").reversed() };
        let links = match self.links_changed {
            0 => String::new(),
            1 => " 1 link changed ".to_owned(),
            count => format!(" {count} links changed "),
        };
        let about = format!(" · supervisor {}, up {}", supervisor.pid, table::span(supervisor.uptime_ms));
        let room = width.saturating_sub(1 + links.width());
        let about = if room < about.width() + PATH_WIDTH_MIN { String::new() } else { about };
        let path = text::showable(&supervisor.procfile.display().to_string());
        let path = text::cut_front(&path, room.saturating_sub(about.width()));
        let left = format!(" {path}{about}");
        let gap = " ".repeat(width.saturating_sub(left.width() + links.width()));
        Line::from(vec![Span::from(left), Span::from(gap), Span::from(links).bold()]).reversed()
    }

    fn status(&self, width: usize) -> Line<'static> {
        let (mood, said) = match &self.trouble {
            Some(trouble) => (Mood::Failed, trouble),
            None => (self.said.0, &self.said.1),
        };
        let line = Line::from(text::cut(&format!(" {said}"), width));
        match mood {
            Mood::Waiting => line,
            Mood::Done => line.green(),
            Mood::Failed => line.red(),
        }
    }

    fn draw_main(&mut self, frame: &mut Frame<'_>, area: Rect) {
        if self.view == View::Log {
            return self.draw_log(frame, area, Borders::NONE);
        }
        let columns = columns::fitting(&self.processes, usize::from(area.width / 2));
        let gaps = columns.len().saturating_sub(1);
        let used = columns.iter().map(|(_, width)| width).sum::<usize>() + gaps;
        // One blank on either side.
        let wanted = u16::try_from(used + 2).unwrap_or(u16::MAX);
        if self.view == View::Processes || area.width < wanted.saturating_add(LOG_WIDTH_MIN) {
            let columns = columns::fitting(&self.processes, usize::from(area.width.saturating_sub(1)));
            return self.draw_processes(frame, area, &columns);
        }
        self.draw_processes(frame, Rect { width: wanted, ..area }, &columns);
        let rest = Rect { x: area.x + wanted, width: area.width - wanted, ..area };
        self.draw_log(frame, rest, Borders::LEFT);
    }

    fn draw_processes(&mut self, frame: &mut Frame<'_>, area: Rect, columns: &[(columns::Column, usize)]) {
        let row = |process: &ProcessStatus| {
            let cells = columns.iter().map(|(column, width)| text::cut(&column.cell(process), *width));
            Row::new(cells.collect::<Vec<_>>()).style(Style::new().fg(colour(process.view.state)))
        };
        let rows: Vec<Row<'_>> = self.processes.iter().map(row).collect();
        let widths = columns.iter().map(|(_, width)| Constraint::Length(u16::try_from(*width).unwrap_or(u16::MAX)));
        let header = Row::new(columns.iter().map(|(column, _)| column.heading())).bold();
        let mut list = Table::new(rows, widths).column_spacing(1).row_highlight_style(Style::new().reversed());
        // Where there is but one row, the chosen process stands in it.
        if area.height > 1 {
            list = list.header(header);
        }
        let inner = Rect { x: area.x + u16::from(area.width > 1), width: area.width.saturating_sub(1), ..area };
        frame.render_stateful_widget(list, inner, &mut self.table);
    }

    fn draw_log(&mut self, frame: &mut Frame<'_>, area: Rect, borders: Borders) {
        let name = text::showable(self.chosen().unwrap_or("-"));
        let how = match self.log.back() {
            0 => "follows".to_owned(),
            1 => "1 line back".to_owned(),
            back => format!("{back} lines back"),
        };
        let block = Block::new().borders(borders).title(Line::from(format!(" {name} · {how} ")).bold());
        let inner = block.inner(area);
        let layout = Layout { wraps: self.wraps, readable: !self.verbatim };
        let rows = self.log.rows(usize::from(inner.width), usize::from(inner.height), layout);
        let line = |(tone, text): (Tone, String)| match tone {
            Tone::Out => Line::from(text),
            Tone::Err => Line::from(text).yellow(),
            Tone::Note => Line::from(text).dim(),
        };
        let lines: Vec<Line<'_>> = rows.into_iter().map(line).collect();
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let width_of = |part: fn(&(&'static str, &'static str)) -> &'static str| {
        keys::ALL.iter().map(|row| part(row).width()).max().unwrap_or_default()
    };
    let (key_width, what_width) = (width_of(|row| row.0), width_of(|row| row.1));
    // Borders, a blank at either side, two between key and meaning.
    let width = u16::try_from(key_width + what_width + 6).unwrap_or(u16::MAX).min(area.width);
    let height = u16::try_from(keys::ALL.len() + 2).unwrap_or(u16::MAX).min(area.height);
    let page = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    let room = usize::from(width).saturating_sub(4);
    let line = |(key, what): &(&str, &str)| {
        let gap = " ".repeat(key_width + 2 - key.width());
        let what = text::cut(what, room.saturating_sub(key_width + 2));
        Line::from(vec![Span::from(format!(" {key}")).bold(), Span::from(format!("{gap}{what}"))])
    };
    let lines: Vec<Line<'_>> = keys::ALL.iter().map(line).collect();
    frame.render_widget(Clear, page);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" keys · any key goes back ")), page);
}

fn colour(state: StateName) -> Color {
    match state {
        StateName::Ready | StateName::Running => Color::Green,
        StateName::Pending | StateName::Starting | StateName::Stopping | StateName::Backoff => Color::Yellow,
        StateName::Paused => Color::Cyan,
        StateName::Unhealthy | StateName::Failed | StateName::Flapping => Color::Red,
        StateName::Exited | StateName::Disabled => Color::DarkGray,
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::supervisor::control::vocabulary::Action;
    use crate::supervisor::links::LinkRequest;
    use crate::supervisor::native::table::sample;
    use crate::supervisor::native::table::sample_member;
    use crate::supervisor::output::store::LogLine;
    use crate::supervisor::output::store::Stream;

    fn screen(processes: Vec<ProcessStatus>) -> Screen {
        let supervisor = SupervisorView {
            pid: 7,
            version: "x".to_owned(),
            directory: "/d".into(),
            procfile: "/d/Procfile".into(),
            detached: true,
            uptime_ms: 62_000,
        };
        let mut screen = Screen::default();
        screen.set_status(Status { supervisor, processes });
        screen
    }

    fn line(text: &str, stream: Stream) -> Followed {
        let (name, text) = ("web".to_owned(), text.to_owned());
        Followed::Line(LogLine { seq: 0, time_ns: 0, mono_ns: 0, name, stream, pid: None, text, partial: false })
    }

    fn press(screen: &mut Screen, code: KeyCode) -> Option<Wish> {
        screen.press(KeyEvent::new(code, KeyModifiers::NONE))
    }

    /// The rows of a terminal of this size, without the blanks at their ends.
    fn drawn(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| row(y).trim_end().to_owned()).collect()
    }

    #[test]
    fn keys_act_on_the_chosen_process() {
        let mut screen = screen(vec![sample("a", StateName::Ready), sample("b", StateName::Paused)]);
        assert_eq!(screen.chosen(), Some("a"));
        let pause = Wish::Act { action: Action::Pause { for_ms: None }, name: "a".to_owned() };
        assert_eq!(press(&mut screen, KeyCode::Char('p')), Some(pause));
        assert_eq!(press(&mut screen, KeyCode::Down), None);
        assert_eq!(press(&mut screen, KeyCode::Down), None);
        assert_eq!(screen.chosen(), Some("b"), "the last one stays chosen");
        let resume = Wish::Act { action: Action::Resume, name: "b".to_owned() };
        assert_eq!(press(&mut screen, KeyCode::Char('p')), Some(resume));
        let cut = LinkRequest::Partition { sides: vec![vec!["b".to_owned()]], silent: false };
        assert_eq!(press(&mut screen, KeyCode::Char('c')), Some(Wish::Link(cut)));
        assert_eq!(press(&mut screen, KeyCode::Char('k')), None);
        assert_eq!(screen.chosen(), Some("a"));
        for (letter, wish) in [('c', Wish::Leave), ('l', Wish::Redraw), ('z', Wish::Suspend)] {
            assert_eq!(screen.press(KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL)), Some(wish));
        }
        for modifier in [KeyModifiers::CONTROL, KeyModifiers::ALT] {
            assert_eq!(screen.press(KeyEvent::new(KeyCode::Char('x'), modifier)), None, "{modifier}");
        }
        assert_eq!(press(&mut screen, KeyCode::Char('?')), None);
        assert_eq!(press(&mut screen, KeyCode::Char('x')), None, "help is up; this key closes it");
        assert_eq!(press(&mut screen, KeyCode::Char('q')), Some(Wish::Leave));
        assert_eq!(press(&mut Screen::default(), KeyCode::Char('x')), None, "nobody is chosen");
        assert_eq!(press(&mut Screen::default(), KeyCode::Down), None);
    }

    #[test]
    fn both_sides_are_drawn() {
        let mut web = sample("web", StateName::Failed);
        web.view.restarts = 3;
        let mut screen = screen(vec![sample_member("etcd1"), web]);
        for number in 0..50 {
            screen.add_line(line(&format!("line {number}"), Stream::Out));
        }
        screen.say(Mood::Done, "kill web: killed\n");
        let rows = drawn(&mut screen, 80, 9);
        let expected = [
            " /d/Procfile · supervisor 7, up 1m2s",
            " NAME  STATE      ROLE      HEALTH    │ etcd1 · follows",
            " etcd1 ready      leader    ok        │line 45",
            " web   failed     -         -         │line 46",
            "                                      │line 47",
        ];
        assert_eq!(rows[..5], expected);
        assert!(rows[6].ends_with("│line 49"), "{rows:?}");
        assert_eq!(rows[7], " kill web: killed");
        assert!(rows[8].starts_with(" q quit ? keys ↑↓ choose p pause x kill"), "{rows:?}");
        press(&mut screen, KeyCode::PageUp);
        screen.set_links_changed(2);
        screen.set_trouble("the supervisor does not answer".to_owned());
        let rows = drawn(&mut screen, 80, 9);
        assert!(rows[0].ends_with("2 links changed"), "{rows:?}");
        assert!(rows[1].contains("lines back"), "{rows:?}");
        assert_eq!(rows[7], " the supervisor does not answer");
        press(&mut screen, KeyCode::Enter);
        let rows = drawn(&mut screen, 80, 9);
        assert!(rows[2].starts_with("line 4"), "{rows:?}");
        press(&mut screen, KeyCode::Enter);
        let rows = drawn(&mut screen, 40, 9);
        assert!(rows[0].starts_with(" /d/Procfile   ") && rows[0].ends_with("  2 links changed"), "{rows:?}");
        assert_eq!(rows[2], " etcd1 ready      leader    ok");
        let rows = drawn(&mut screen, 200, 9);
        assert!(rows[8].ends_with("PgUp look back"), "{rows:?}");
        press(&mut screen, KeyCode::Esc);
        let rows = drawn(&mut screen, 200, 9);
        assert!(rows[1].contains("PID    RESTARTS UPTIME CPU    RSS"), "{rows:?}");
    }

    #[test]
    fn what_is_slow_to_come_is_kept_as_it_was() {
        let mut screen = screen(vec![sample_member("m1"), sample_member("m2")]);
        let mut states = [sample("m1", StateName::Paused), sample("m2", StateName::Ready)];
        states.iter_mut().for_each(|process| process.is_member = true);
        states[0].view.group = sample_member("m1").view.group;
        states[1].view.group = Some(99);
        let supervisor = screen.supervisor.clone().unwrap();
        screen.set_states(Status { supervisor, processes: states.to_vec() });
        let rows = drawn(&mut screen, 80, 9);
        assert!(rows[2].contains("paused 3s  leader"), "{rows:?}");
        assert!(!rows[3].contains("leader"), "another process than before: {rows:?}");
    }

    #[test]
    fn lines_do_not_leave_their_place() {
        let mut screen = screen(vec![sample("web", StateName::Running)]);
        screen.add_line(line("\x1b[2J\x1b[1;1Hhome\tand \u{7}away\r", Stream::Out));
        screen.add_line(line(&"网站".repeat(100), Stream::Err));
        screen.add_line(line("last", Stream::Out));
        let rows = drawn(&mut screen, 60, 8);
        let at = rows[2].find('│').unwrap();
        assert_eq!(&rows[2][at..], "│home    and away");
        assert!(rows[3].contains("│网") && rows[3].ends_with('…'), "{rows:?}");
        assert_eq!(&rows[4][at..], "│last");
        press(&mut screen, KeyCode::Char('w'));
        let rows = drawn(&mut screen, 60, 8);
        assert!(rows[2..5].iter().all(|row| row.ends_with('站') || row.ends_with('网')), "{rows:?}");
    }

    #[test]
    fn every_size_is_borne() {
        let many = (0..30).map(|number| sample(&format!("web{number}"), StateName::Ready)).chain([sample_member("m1")]);
        let mut screen = screen(many.collect());
        screen.add_line(line("hello", Stream::Out));
        for _ in 0..40 {
            press(&mut screen, KeyCode::Down);
        }
        for (width, height) in [(80, 24), (40, 10), (24, 6), (10, 4), (3, 2), (1, 1), (200, 50)] {
            for key in ['?', 'w', 'w'] {
                press(&mut screen, KeyCode::Char(key));
                let rows = drawn(&mut screen, width, height);
                assert!(width < 24 || rows.concat().contains("m1") || key == '?', "the chosen one is seen: {rows:?}");
            }
        }
        assert_eq!(drawn(&mut screen, 0, 0), [""; 0]);
        assert_eq!(drawn(&mut Screen::default(), 40, 10)[0], " asking the supervisor …");
        let rows = drawn(&mut screen, 40, 1);
        assert!(rows[0].starts_with(" m1"), "{rows:?}");
        press(&mut screen, KeyCode::Char('?'));
        let rows = drawn(&mut screen, 100, 24);
        for (key, what) in keys::ALL {
            assert!(rows.iter().any(|row| row.contains(key) && row.contains(what)), "{key}: {rows:?}");
        }
    }
}
