//! Pictures of the documentation: from a few lines of text to boxes and arrows, as SVG.
//!
//! A picture is what its text gives, to the byte: a test compares them. It needs no font but the
//! reader's, and follows light and dark.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// Where texts and pictures are.
const FOLDER: &str = "docs/pictures";

/// Around everything, and between boxes.
const MARGIN: i32 = 12;
const GAP: i32 = 56;
const LINE: i32 = 19;
/// The width of a character, for whether a line fits.
const CHARACTER: f64 = 7.25;

/// A box at a place of the grid.
#[derive(Debug)]
struct Shape {
    name: String,
    /// One of ours, which stands out.
    is_ours: bool,
    column: i32,
    row: i32,
    lines: Vec<String>,
}

#[derive(Debug)]
struct Arrow {
    from: usize,
    to: usize,
    label: String,
}

/// What a text says.
#[derive(Debug, Default)]
struct Picture {
    title: String,
    width: i32,
    height: i32,
    shapes: Vec<Shape>,
    arrows: Vec<Arrow>,
}

/// Writes all pictures anew. Returns those that differed.
///
/// # Errors
/// A text that cannot be read, or says what cannot be drawn.
pub(crate) fn write(root: &Path) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for (path, svg) in all(root)? {
        if fs::read_to_string(&path).ok().as_ref() != Some(&svg) {
            fs::write(&path, svg).with_context(|| format!("cannot write {}", path.display()))?;
            written.push(path);
        }
    }
    Ok(written)
}

/// Each picture's file, and what it should hold.
fn all(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut pictures = Vec::new();
    for entry in fs::read_dir(root.join(FOLDER)).context("cannot list the pictures")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            let text = fs::read_to_string(&path)?;
            let picture = parse(&text).with_context(|| path.display().to_string())?;
            pictures.push((path.with_extension("svg"), draw(&picture)));
        }
    }
    Ok(pictures)
}

fn parse(text: &str) -> Result<Picture> {
    let mut picture = Picture::default();
    for (line, number) in text.lines().zip(1..) {
        let read = read_line(line, &mut picture);
        read.with_context(|| format!("line {number}: {line}"))?;
    }
    Ok(picture)
}

fn read_line(line: &str, picture: &mut Picture) -> Result<()> {
    if let Some(title) = line.strip_prefix("# ") {
        picture.title = title.to_owned();
        return Ok(());
    }
    let (head, text) = line.split_once(" : ").unwrap_or((line, ""));
    let words: Vec<_> = head.split_whitespace().collect();
    match words[..] {
        [] => {}
        ["cell", width, height] => {
            (picture.width, picture.height) = (width.parse()?, height.parse()?);
        }
        [kind @ ("box" | "chain"), name, place] => {
            let (column, row) = place.split_once(',').context("a place is COLUMN,ROW")?;
            let lines: Vec<_> = text.split('|').map(|line| line.trim().to_owned()).collect();
            for line in &lines {
                #[expect(clippy::cast_precision_loss, reason = "a line is short")]
                let width = line.replace('`', "").chars().count() as f64 * CHARACTER;
                ensure!(width < f64::from(picture.width), "{line:?} does not fit");
            }
            let (name, is_ours) = (name.to_owned(), kind == "chain");
            let (column, row) = (column.parse()?, row.parse()?);
            picture.shapes.push(Shape { name, is_ours, column, row, lines });
        }
        ["arrow", from, "->", to] => {
            let find = |name: &str| {
                let found = picture.shapes.iter().position(|shape| shape.name == name);
                found.with_context(|| format!("there is no box {name}"))
            };
            let arrow = Arrow { from: find(from)?, to: find(to)?, label: text.to_owned() };
            picture.arrows.push(arrow);
        }
        _ => bail!("it is no cell, box, chain or arrow"),
    }
    Ok(())
}

const STYLE: &str = "\
text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#1f2328;text-anchor:middle}\
.b{font-weight:bold}.s{fill:#fff;stroke:#59636e}.o{fill:#ddf4ff;stroke:#0969da}\
.a{fill:none;stroke:#59636e;stroke-width:1.5}.h{fill:#59636e}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#151b23;stroke:#9198a1}\
.o{fill:#0c2d6b;stroke:#4493f8}.a{stroke:#9198a1}.h{fill:#9198a1}}";

fn draw(picture: &Picture) -> String {
    let columns = picture.shapes.iter().map(|shape| shape.column + 1).max().unwrap_or_default();
    let rows = picture.shapes.iter().map(|shape| shape.row + 1).max().unwrap_or_default();
    let width = columns * (picture.width + GAP) - GAP + 2 * MARGIN;
    let height = rows * (picture.height + GAP) - GAP + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\">\n<title>{}</title>\n<style>{STYLE}</style>\n\
         <defs><marker id=\"h\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" \
         markerHeight=\"8\" markerUnits=\"userSpaceOnUse\" orient=\"auto\"><path class=\"h\" \
         d=\"M0 0L8 4L0 8z\"/></marker></defs>\n",
        escaped(&picture.title)
    );
    for shape in &picture.shapes {
        draw_shape(&mut svg, picture, shape);
    }
    for arrow in &picture.arrows {
        draw_arrow(&mut svg, picture, arrow);
    }
    svg + "</svg>\n"
}

impl Picture {
    /// Left, top.
    fn corner(&self, shape: &Shape) -> (i32, i32) {
        let x = MARGIN + shape.column * (self.width + GAP);
        (x, MARGIN + shape.row * (self.height + GAP))
    }

    fn middle(&self, shape: &Shape) -> (i32, i32) {
        let (x, y) = self.corner(shape);
        (x + self.width / 2, y + self.height / 2)
    }
}

fn draw_shape(svg: &mut String, picture: &Picture, shape: &Shape) {
    let (x, y) = picture.corner(shape);
    let (middle, center) = picture.middle(shape);
    let class = if shape.is_ours { "o" } else { "s" };
    let (width, height) = (picture.width, picture.height);
    put(
        svg,
        format_args!(
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"8\"/>"
        ),
    );
    let count = i32::try_from(shape.lines.len()).unwrap_or(i32::MAX);
    let first = center - (count - 1) * LINE / 2 + 4;
    for (at, line) in (0..).zip(&shape.lines) {
        let bold = if at == 0 { " class=\"b\"" } else { "" };
        let (y, line) = (first + at * LINE, escaped(&line.replace('`', "")));
        put(svg, format_args!("<text{bold} x=\"{middle}\" y=\"{y}\">{line}</text>"));
    }
}

/// Straight within a row or a column; else along the row of its start, then into the column of its end.
fn draw_arrow(svg: &mut String, picture: &Picture, arrow: &Arrow) {
    let (from, to) = (&picture.shapes[arrow.from], &picture.shapes[arrow.to]);
    let ((from_x, from_y), (to_x, to_y)) = (picture.middle(from), picture.middle(to));
    let (half_width, half_height) = (picture.width / 2, picture.height / 2);
    let (right, down) = ((to_x - from_x).signum(), (to_y - from_y).signum());
    let start = if right == 0 {
        (from_x, from_y + down * half_height)
    } else {
        (from_x + right * half_width, from_y)
    };
    let end = if down == 0 {
        (to_x - right * half_width, to_y)
    } else {
        (to_x, to_y - down * half_height)
    };
    let bend = if right != 0 && down != 0 { format!("H{to_x}") } else { String::new() };
    let ((x1, y1), (x2, y2)) = (start, end);
    put(
        svg,
        format_args!("<path class=\"a\" marker-end=\"url(#h)\" d=\"M{x1} {y1}{bend}L{x2} {y2}\"/>"),
    );
    if !arrow.label.is_empty() {
        let beside = if down == 0 { (0, -8) } else { (28, 4) };
        let (x, y) = (x1.midpoint(x2) + beside.0, y1.midpoint(y2) + beside.1);
        put(svg, format_args!("<text x=\"{x}\" y=\"{y}\">{}</text>", escaped(&arrow.label)));
    }
}

fn put(svg: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(svg, "{line}").expect("a string takes everything");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('`', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pictures_are_what_their_texts_give() {
        let root = crate::tidy::root();
        let pictures = all(&root).unwrap();
        assert!(pictures.len() >= 3, "{}", pictures.len());
        for (path, svg) in pictures {
            let committed = fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(committed, svg, "{}: run `cargo xtask pictures`", path.display());
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_told() {
        let told = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert_eq!(
            told("circle a 0,0"),
            "line 1: circle a 0,0: it is no cell, box, chain or arrow"
        );
        assert!(told("cell 9 9\nbox a 0,0 : long\n").contains("\"long\" does not fit"));
        assert!(told("arrow a -> b").contains("there is no box a"));
    }
}
