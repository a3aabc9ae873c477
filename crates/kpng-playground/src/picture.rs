//! The picture of the playground: what there is to see, and how it is drawn.

use std::collections::BTreeMap;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row as TableRow, Table, Wrap};

/// What became of the packets of one flow since what must become of them changed last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections per pod.
    pub answers: BTreeMap<String, u64>,
    /// How many were refused.
    pub refused: u64,
    /// How many got no answer.
    pub silent: u64,
    /// How many answers went to a masqueraded source.
    pub masqueraded: u64,
    /// How many became something else than they must.
    pub wrong: u64,
}

impl Counts {
    /// How many got an answer.
    pub fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Nothing was sent yet.
    pub fn is_empty(&self) -> bool {
        self.answered() + self.refused + self.silent == 0
    }

    /// Who answered, or that nobody did, with `gap` between them.
    pub fn outcome(&self, gap: &str) -> String {
        let mut parts: Vec<_> =
            self.answers.iter().map(|(pod, times)| format!("{pod} {times}")).collect();
        if self.refused > 0 {
            parts.push(format!("refused {}", self.refused));
        }
        if self.silent > 0 {
            parts.push(format!("dropped {}", self.silent));
        }
        if parts.is_empty() { "…".to_owned() } else { parts.join(gap) }
    }

    /// Which source the pods see.
    pub fn source(&self) -> &'static str {
        match (self.answered(), self.masqueraded) {
            (0, _) => "",
            (_, 0) => "kept",
            (answered, masqueraded) if answered == masqueraded => "masqueraded",
            _ => "some masqueraded",
        }
    }
}

/// A line of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Whose frontend is asked.
    pub service: String,
    /// Who asks.
    pub from: &'static str,
    /// What is asked.
    pub to: String,
    /// What came of it.
    pub counts: Counts,
}

/// Everything that is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// The backend's name.
    pub backend: String,
    /// The scenario and its step, or nothing.
    pub step: String,
    /// What happened in this step.
    pub title: String,
    /// What to look at.
    pub look: String,
    /// Where the state file is.
    pub file: String,
    /// What is wrong, if something is.
    pub problem: Option<String>,
    /// Services and what is asked of them.
    pub rows: Vec<Row>,
    /// The pods: names, addresses, whether they run on this node.
    pub pods: Vec<(String, String, bool)>,
    /// What happened last, the latest at the end.
    pub log: Vec<String>,
    /// How many such lines there were.
    pub said: usize,
}

/// Below so many lines there is no room for everything.
const LOW: u16 = 20;

/// Below so many columns, what is usual is left out.
const NARROW: u16 = 100;

/// Draws the picture, with help over it or not.
pub fn draw(frame: &mut Frame<'_>, picture: &Picture, help: bool) {
    let problem = u16::from(picture.problem.is_some()) * 2;
    let pods = u16::try_from(picture.pods.len().div_ceil(2)).unwrap_or(u16::MAX).clamp(1, 6) + 1;
    // Connections and problems are what matters, where there is little room.
    let (pods, log) = if frame.area().height < LOW { (0, 0) } else { (pods, 5) };
    let [head, table, pod_area, log, error, foot] = Layout::vertical([
        Constraint::Length(heading_height(picture, frame.area().width)),
        Constraint::Min(5),
        Constraint::Length(pods),
        Constraint::Length(log),
        Constraint::Length(problem),
        Constraint::Length(2),
    ])
    .areas(frame.area());
    frame.render_widget(heading(picture), head);
    frame.render_widget(flows(picture, table.width), table);
    draw_pods(frame, picture, pod_area);
    let shown = picture.log.len().saturating_sub(usize::from(log.height.saturating_sub(1)));
    let lines: Vec<_> = picture.log[shown..].iter().map(|line| Line::from(&**line)).collect();
    frame.render_widget(Paragraph::new(lines).block(titled("what happened")), log);
    if let Some(problem) = &picture.problem {
        let text = Paragraph::new(format!("✗ {problem}")).wrap(Wrap { trim: true });
        frame.render_widget(text.style(Style::new().fg(Color::Red)), error);
    }
    frame.render_widget(footer(picture), foot);
    if help {
        draw_help(frame);
    }
}

fn titled(title: &str) -> Block<'_> {
    Block::new().borders(Borders::TOP).title(format!(" {title} "))
}

/// Two lines, and what there is to look at: as long lines as words allow.
fn heading_height(picture: &Picture, width: u16) -> u16 {
    const WORD: u16 = 8;
    let lines = picture.look.chars().count().div_ceil(width.saturating_sub(WORD).max(1).into());
    u16::try_from(lines + 2).unwrap_or(u16::MAX).clamp(4, 6)
}

fn heading(picture: &Picture) -> Paragraph<'_> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let first = Line::from(vec![
        Span::styled("kpng playground", bold),
        Span::raw(format!("  backend {}  {}", picture.backend, picture.step)),
    ]);
    let lines = vec![first, Line::styled(&*picture.title, bold), Line::from(&*picture.look)];
    Paragraph::new(lines).wrap(Wrap { trim: true })
}

fn flows(picture: &Picture, width: u16) -> Table<'_> {
    let service = |row: &Row| match row.service.strip_prefix("default/") {
        Some(name) if width < NARROW => name.to_owned(),
        _ => row.service.clone(),
    };
    let source = |row: &Row| match row.counts.source() {
        "masqueraded" if width < NARROW => "masq.",
        "some masqueraded" => "mixed",
        source => source,
    };
    let gap = if width < NARROW { " " } else { "  " };
    let row = |row: &'_ Row| {
        let (sign, colour) = match &row.counts {
            counts if counts.wrong > 0 => ("✗", Color::Red),
            counts if counts.is_empty() => ("", Color::Reset),
            _ => ("✓", Color::Green),
        };
        let outcome = match row.counts {
            Counts { refused: 0, silent: 0, .. } => Style::new().fg(Color::Green),
            _ => Style::new().fg(Color::Yellow),
        };
        TableRow::new([
            Cell::new(service(row)),
            Cell::new(row.from),
            Cell::new(row.to.clone()),
            Cell::new(row.counts.outcome(gap)).style(outcome),
            Cell::new(source(row)),
            Cell::new(sign).style(Style::new().fg(colour)),
        ])
    };
    let longest = |texts: &mut dyn Iterator<Item = usize>, most: u16| {
        let longest = texts.max().and_then(|length| u16::try_from(length).ok());
        Constraint::Length(longest.unwrap_or(most).clamp(7, most))
    };
    let (service, to, source) = if width < NARROW {
        let services = &mut picture.rows.iter().map(|row| service(row).len());
        (longest(services, 20), longest(&mut picture.rows.iter().map(|row| row.to.len()), 26), 6)
    } else {
        (Constraint::Length(20), Constraint::Length(26), 11)
    };
    let widths = [
        service,
        Constraint::Length(8),
        to,
        Constraint::Fill(1),
        Constraint::Length(source),
        Constraint::Length(1),
    ];
    let header = ["service", "from", "to", "answered by", "source", ""];
    Table::new(picture.rows.iter().map(row), widths)
        .header(TableRow::new(header).style(Style::new().add_modifier(Modifier::DIM)))
        .block(titled("connections"))
}

fn draw_pods(frame: &mut Frame<'_>, picture: &Picture, area: Rect) {
    let line = |(name, addresses, here): &(String, String, bool)| {
        let place = if *here { "" } else { "  on another node" };
        Line::from(format!("{name}  {addresses}{place}"))
    };
    let block = titled("pods");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [left, right] = Layout::horizontal([Constraint::Fill(1); 2]).areas(inner);
    let half = picture.pods.len().div_ceil(2);
    let (first, second) = picture.pods.split_at(half);
    frame.render_widget(Paragraph::new(Vec::from_iter(first.iter().map(line))), left);
    frame.render_widget(Paragraph::new(Vec::from_iter(second.iter().map(line))), right);
}

fn footer(picture: &Picture) -> Paragraph<'_> {
    let keys = "q quit   n next step   r restart   h help";
    let file = format!("edit {} and see", picture.file);
    Paragraph::new(vec![Line::from(file), Line::from(keys)])
        .style(Style::new().add_modifier(Modifier::DIM))
}

const HELP: &str = "\
Each line of the table is asked several times a second, with real packets.

  visitor   a pod of the node that only asks
  client    a host outside, 203.0.113.2
  stranger  the same host, as 203.0.113.130

  source    kept: the pod sees who asks
            masqueraded (masq.): it sees the node
  ✓ ✗       as the Services say, or not

In another terminal: kpng playground shell client
In it, for instance: cat < /dev/tcp/172.30.0.10/80

q quit   n next step   r restart   h close this";

fn draw_help(frame: &mut Frame<'_>) {
    let area = frame.area();
    let height = u16::try_from(HELP.lines().count()).unwrap_or(u16::MAX).saturating_add(2);
    let (width, height) = (78.min(area.width), height.min(area.height));
    let area = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    frame.render_widget(ratatui::widgets::Clear, area);
    frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title(" help ")), area);
}

#[cfg(test)]
mod tests;
