//! What a command prints on a terminal, as an SVG: the pictures of the documentation, which its tests take.

use std::fmt::Write as _;

/// Of one character; text is put column by column, so that any monospaced font does.
const WIDTH: f64 = 8.4;
const LINE: usize = 19;
const SIDE: usize = 20;
/// The bar of the window, with the command in it.
const BAR: usize = 34;

/// The picture of a terminal in which `command` has printed `text`, with the codes of colour that [`super::output::Screen`] writes.
pub(super) fn picture(command: &str, text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let widest = lines.iter().map(|line| runs(line).map(|run| run.text.chars().count()).sum::<usize>()).max();
    let columns = widest.unwrap_or_default().max(command.chars().count() + 8);
    let width = (columns as f64 * WIDTH).ceil() as usize + 2 * SIDE;
    let height = BAR + lines.len() * LINE + 2 * SIDE;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\">\n<title>{command}</title>\n<style>\
         text{{font:14px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;fill:#d6dbe2;white-space:pre}}\
         .b,.r{{font-weight:bold}}.b{{fill:#fff}}.r{{fill:#ff7b72}}.g{{fill:#56d364}}.y{{fill:#e3b341}}.f{{fill:#8b949e}}\
         </style>\n<rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#12161c\"/>\n\
         <path d=\"M0 {BAR}H{width}\" stroke=\"#2b323b\"/>\n",
        command = escaped(command),
    );
    let _ = writeln!(svg, "<text x=\"{SIDE}\" y=\"22\" class=\"f\">$ {}</text>", escaped(command));
    for (at, line) in lines.iter().enumerate() {
        let y = BAR + SIDE + at * LINE + 12;
        let mut column = 0;
        for run in runs(line) {
            let length = run.text.chars().count();
            if !run.text.trim().is_empty() {
                let class =
                    if run.class.is_empty() { String::new() } else { format!(" class=\"{}\"", run.class) };
                let _ = writeln!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{y}\" textLength=\"{:.1}\"{class}>{}</text>",
                    SIDE as f64 + column as f64 * WIDTH,
                    length as f64 * WIDTH,
                    escaped(run.text),
                );
            }
            column += length;
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Text of one colour.
struct Run<'a> {
    text: &'a str,
    class: &'static str,
}

/// The parts of a line by colour. A code that is not one of ours is an error of the test.
fn runs(line: &str) -> impl Iterator<Item = Run<'_>> {
    line.split('\u{1b}').enumerate().map(|(at, part)| {
        if at == 0 {
            return Run { text: part, class: "" };
        }
        let (code, text) =
            part.strip_prefix('[').and_then(|rest| rest.split_once('m')).expect("a code of colour");
        let class = match code {
            "0" => "",
            "1" => "b",
            "1;31" => "r",
            "2" => "f",
            "32" => "g",
            "33" => "y",
            other => panic!("no class for code {other}"),
        };
        Run { text, class }
    })
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[test]
fn colours_and_columns_are_kept() {
    let svg = picture("entente <x>", "a \u{1b}[1;31mbad & b\u{1b}[0m  c\n\u{1b}[32mok\u{1b}[0m\n");
    assert!(svg.contains("<title>entente &lt;x&gt;</title>"), "{svg}");
    // `bad & b` begins in column 2 and is seven wide; `c` follows two spaces.
    assert!(
        svg.contains("<text x=\"36.8\" y=\"66\" textLength=\"58.8\" class=\"r\">bad &amp; b</text>"),
        "{svg}"
    );
    assert!(svg.contains("textLength=\"25.2\">  c</text>"), "{svg}");
    assert!(svg.contains("y=\"85\" textLength=\"16.8\" class=\"g\">ok</text>"), "{svg}");
}
