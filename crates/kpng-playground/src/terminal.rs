//! The picture on a terminal, and its keys.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, try_init, try_restore};

use crate::playground::Command;
use crate::{Error, Picture, Result, draw};

/// How often the picture is drawn.
const FRAME: Duration = Duration::from_millis(100);

/// Draws the picture until somebody quits or `stop` is set; the keys become commands. The terminal is
/// as it was afterwards, also when the process panics.
///
/// # Errors
/// [`Error::Terminal`].
pub fn show(picture: &Mutex<Picture>, commands: &Sender<Command>, stop: &AtomicBool) -> Result<()> {
    let fail = |source| Error::Terminal { source };
    let mut terminal = try_init().map_err(fail)?;
    let shown = follow(&mut terminal, picture, commands, stop);
    try_restore().map_err(fail)?;
    shown.map_err(fail)
}

fn follow(
    terminal: &mut DefaultTerminal,
    picture: &Mutex<Picture>,
    commands: &Sender<Command>,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let mut help = false;
    while !stop.load(Ordering::Acquire) {
        let now = picture.lock().unwrap_or_else(PoisonError::into_inner).clone();
        terminal.draw(|frame| draw(frame, &now, help))?;
        if !event::poll(FRAME)? {
            continue;
        }
        let Event::Key(key) = event::read()? else { continue };
        if key.kind != KeyEventKind::Press {
            continue;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let command = match key.code {
            KeyCode::Char('c') if control => return Ok(()),
            KeyCode::Char('q') => return Ok(()),
            KeyCode::Esc if !help => return Ok(()),
            KeyCode::Esc => {
                help = false;
                continue;
            }
            KeyCode::Char('h' | '?') => {
                help = !help;
                continue;
            }
            KeyCode::Char('n') => Command::Next,
            KeyCode::Char('r') => Command::Restart,
            _ => continue,
        };
        if commands.send(command).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
