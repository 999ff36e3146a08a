//! Tables in text, as kubectl prints them: two spaces between columns, no frames, and nothing that a script could not cut.

use super::output::{Screen, Tone, plain};

/// Between columns.
const GAP: usize = 2;

/// A column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    title: &'static str,
    /// Whether it goes where the terminal is too narrow for all.
    can_go: bool,
}

impl Column {
    /// One that is always shown.
    pub(super) const fn kept(title: &'static str) -> Self {
        Self { title, can_go: false }
    }

    /// One that goes where the terminal is too narrow; the last one goes first.
    pub(super) const fn spare(title: &'static str) -> Self {
        Self { title, can_go: true }
    }
}

/// What stands in a row and a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A text; `-` where it is empty.
    pub(super) fn new(text: impl AsRef<str>) -> Self {
        Self::toned(Tone::Plain, text)
    }

    /// A text in a tone; a faint `-` where it is empty.
    pub(super) fn toned(tone: Tone, text: impl AsRef<str>) -> Self {
        match plain(text.as_ref()) {
            empty if empty.trim().is_empty() => Self { text: "-".to_owned(), tone: Tone::Faint },
            text => Self { text, tone },
        }
    }

    /// The status of a condition.
    pub(super) fn truth(status: &str) -> Self {
        Self::toned(Tone::of_truth(status), status)
    }

    /// A number; a faint `-` for none.
    pub(super) fn count(number: usize) -> Self {
        if number == 0 { Self::new("") } else { Self::new(number.to_string()) }
    }
}

/// Rows under titles.
#[derive(Clone, Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row, with a cell for each column.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, each line ended.
    pub(super) fn render(&self, screen: Screen) -> String {
        let shown = self.shown(screen.width);
        let mut text = String::new();
        let titles = self.columns.iter().map(|column| Cell::toned(Tone::Title, column.title)).collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            text.push_str(&line(row, &shown, screen));
            text.push('\n');
        }
        text
    }

    /// Which columns are shown, and how wide each is.
    fn shown(&self, width: Option<usize>) -> Vec<Option<usize>> {
        let widest = |at: usize, column: &Column| {
            let cells = self.rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.text.chars().count());
            cells.chain([column.title.chars().count()]).max()
        };
        let mut shown: Vec<Option<usize>> =
            self.columns.iter().enumerate().map(|(at, column)| widest(at, column)).collect();
        let Some(width) = width else { return shown };
        for (at, column) in self.columns.iter().enumerate().rev() {
            let total: usize = shown.iter().flatten().map(|wide| wide + GAP).sum();
            if total.saturating_sub(GAP) <= width {
                break;
            }
            if let (true, Some(column)) = (column.can_go, shown.get_mut(at)) {
                *column = None;
            }
        }
        shown
    }
}

fn line(row: &[Cell], shown: &[Option<usize>], screen: Screen) -> String {
    let mut text = String::new();
    let mut owed = 0;
    for (cell, width) in row.iter().zip(shown) {
        let Some(width) = width else { continue };
        text.push_str(&" ".repeat(owed));
        text.push_str(&screen.paint(cell.tone, &cell.text));
        owed = width.saturating_sub(cell.text.chars().count()) + GAP;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new([
            Column::kept("PEER"),
            Column::kept("READY"),
            Column::spare("ROTATION"),
            Column::spare("AGE"),
        ]);
        table.row([Cell::new("west.example"), Cell::truth("True"), Cell::truth("Unknown"), Cell::new("3d")]);
        table.row([Cell::new("no\u{1b}rth"), Cell::truth("False"), Cell::truth("-"), Cell::new("")]);
        table
    }

    const PLAIN: Screen = Screen { is_terminal: false, color: false, width: None };

    #[test]
    fn it_fits_the_terminal() {
        let wide = "\
PEER          READY  ROTATION  AGE
west.example  True   Unknown   3d
no rth        False  -         -
";
        assert_eq!(table().render(PLAIN), wide);
        assert_eq!(table().render(Screen { width: Some(34), ..PLAIN }), wide);
        let narrow = "\
PEER          READY  ROTATION
west.example  True   Unknown
no rth        False  -
";
        assert_eq!(table().render(Screen { width: Some(33), ..PLAIN }), narrow);
        let narrowest = "\
PEER          READY
west.example  True
no rth        False
";
        assert_eq!(table().render(Screen { width: Some(4), ..PLAIN }), narrowest);
    }

    #[test]
    fn colour_changes_no_column() {
        let coloured = table().render(Screen { color: true, ..PLAIN });
        assert!(
            coloured.contains("\u{1b}[32mTrue\u{1b}[0m") && coloured.contains("\u{1b}[1;31mFalse"),
            "{coloured:?}"
        );
        let mut bare = coloured;
        for code in ["1;31", "32", "33", "1", "2", "0"] {
            bare = bare.replace(&format!("\u{1b}[{code}m"), "");
        }
        assert_eq!(bare, table().render(PLAIN));
    }
}
