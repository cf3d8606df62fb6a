use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use proptest::prelude::*;

use super::*;

const COLUMNS: Syntax<'_> = Syntax { item: ITEM, columns: true };

fn filled(template: &str, item: &str) -> String {
    let columns = [item.as_bytes()];
    let fill = Fill { item: item.as_bytes(), columns: &columns, sequence: 7, slot: 2 };
    let mut out = Vec::new();
    Template::parse(template.as_bytes(), Syntax::default()).fill(&fill, &mut out);
    String::from_utf8(out).unwrap()
}

fn filled_columns(template: &str, columns: &[&str]) -> String {
    let item = columns.join(" ");
    let columns: Vec<_> = columns.iter().map(|column| column.as_bytes()).collect();
    let fill = Fill { item: item.as_bytes(), columns: &columns, sequence: 7, slot: 2 };
    let mut out = Vec::new();
    Template::parse(template.as_bytes(), COLUMNS).fill(&fill, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn placeholders_mean_what_they_mean_in_gnu_parallel() {
    let path = "dir/sub/pic.tar.jpg";
    for (template, want) in [
        ("{}", path),
        ("{1}", path),
        ("{1/.}", "pic.tar"),
        ("{.}.png", "dir/sub/pic.tar.png"),
        ("{/}", "pic.tar.jpg"),
        ("{//}", "dir/sub"),
        ("{/.}", "pic.tar"),
        ("{#}-{%}", "7-2"),
        ("a{}b{}c", "adir/sub/pic.tar.jpgbdir/sub/pic.tar.jpgc"),
        ("{x} {", "{x} {"),
        // Of an item without columns these are no placeholders: `a{2}` is an expression.
        ("a{2}{0}{01}{+1}", "a{2}{0}{01}{+1}"),
    ] {
        assert_eq!(filled(template, path), want, "{template}");
    }
    assert_eq!(filled("{//} {.}", "plain"), ". plain");
    assert_eq!(filled("{//} {.} {/.}", "/.bashrc"), "/ / ");
}

#[test]
fn columns_are_named_by_their_place() {
    let columns = ["a/x.c", "b", "c.d"];
    for (template, want) in [
        ("{2}{1}", "ba/x.c"),
        ("{1/.}|{1//}|{3.}", "x|a|c"),
        ("{-1} {-3}", "c.d a/x.c"),
        ("{}", "a/x.c b c.d"),
        ("{/}", "x.c b c.d"),
        ("<{4}{-4}>", "<>"),
    ] {
        assert_eq!(filled_columns(template, &columns), want, "{template}");
    }
}

#[test]
fn what_stands_for_the_item_can_be_another_text() {
    let syntax = Syntax { item: b"%%", columns: false };
    let fill = Fill { item: b"x.c", columns: &[b"x.c"], sequence: 1, slot: 1 };
    let mut out = Vec::new();
    Template::parse(b"{}%%{.}", syntax).fill(&fill, &mut out);
    assert_eq!(out, b"{}x.cx");
    assert_eq!(Template::command(&[b"echo".to_vec()], syntax)[1].text(), b"%%");
}

#[test]
fn a_command_without_placeholder_gets_the_item_last() {
    let argv = [b"echo".to_vec(), b"-n".to_vec()];
    let command = Template::command(&argv, Syntax::default());
    let texts: Vec<_> = command.iter().map(|t| t.text().to_vec()).collect();
    assert_eq!(texts, [b"echo".to_vec(), b"-n".to_vec(), b"{}".to_vec()]);
    assert_eq!(Template::command(&[b"x{#}".to_vec()], Syntax::default()).len(), 1);
}

/// Runs a line with `columns`, as a worker does.
fn run_line(line: &str, columns: &[&[u8]]) -> Vec<u8> {
    let item = columns.join(&b' ');
    let fill = Fill { item: &item, columns, sequence: 7, slot: 2 };
    let mut command = Command::new("/bin/sh");
    command.arg("-c");
    for template in Template::shell_line(line.as_bytes(), COLUMNS).unwrap() {
        let mut argument = Vec::new();
        template.fill(&fill, &mut argument);
        command.arg(std::ffi::OsStr::from_bytes(&argument));
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Lines that print their first column, and what they print around it.
const LINES: [(&str, &str, &str); 24] = [
    ("printf %s {1}", "", ""),
    ("printf '<%s>' {1}", "<", ">"),
    ("printf %s \"[{1}]\"", "[", "]"),
    ("printf %s '\"{1}'", "\"", ""),
    ("printf %s 'it'\\''s {1}'", "it's ", ""),
    ("printf %s \"a'{1}'\"", "a'", "'"),
    ("x=\"$(printf '%s.' {1})\"; printf %s \"${x%.}\"", "", ""),
    ("x=\"$(printf '%s.' \"{1}\")\"; printf %s \"${x%.}\"", "", ""),
    ("f() { printf %s {1}; }; f", "", ""),
    ("set -- q; printf %s \"$1\" {1} # it's {1}", "q", ""),
    ("x={1}; printf %s \"${x:-{1}}\"", "", ""),
    ("printf %s \\\"{1}", "\"", ""),
    ("printf %s \"\\$({1})\"", "$(", ")"),
    ("x=1; printf %s \"${x:+it's {1}}\"", "it's ", ""),
    ("x=aba; printf %s \"${x%'b'*}{1}\"", "a", ""),
    (
        "x=\"$(case {1} in '') printf .;; *) printf '%s.' {1};; esac)\"; printf %s \"${x%.}\"",
        "",
        "",
    ),
    ("x=\"$(echo case; printf '%s.' {1})\"; printf %s \"${x%.}\"", "case\n", ""),
    ("x=\"`printf '%s.' {1}`\"; printf %s \"${x%.}\"", "", ""),
    ("x=`printf '%s.' \"{1}\"`; printf %s \"${x%.}\"", "", ""),
    ("cat <<EOF\n<{1}>\nEOF\nprintf %s {1}", "<", ">\n"),
    ("cat <<-EOF; printf %s \"{1}\"\n\tit's \"{1}\"\n\tEOF\n", "it's \"", "\"\n"),
    ("cat <<'A' <<\"B\"; printf %s {1} # it's\n'\nA\n(\"\nB\n", "(\"\n", ""),
    ("echo $((1 << 2)); printf %s {1}", "4\n", ""),
    ("cat <<EOF\n$(printf '%s.' {1})\nEOF\n", "", ".\n"),
];

/// What such a line prints. Some do so twice.
fn printed(line: &str, before: &str, value: &[u8], after: &str) -> Vec<u8> {
    let mut printed = [before.as_bytes(), value, after.as_bytes()].concat();
    if line.contains("EOF") && line.contains("printf") && !line.contains("$(") {
        printed.extend_from_slice(value);
    }
    printed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    /// `--shell`: any bytes but NUL reach the command as they are, however the placeholder is quoted.
    #[test]
    fn no_byte_of_an_item_means_anything_to_a_shell(
        value in proptest::collection::vec(
            prop_oneof![
                Just(b'\''), Just(b'"'), Just(b'$'), Just(b'`'), Just(b'\\'), Just(b'\n'), Just(b' '),
                Just(b'*'), Just(b'('), Just(b')'), Just(b'!'), Just(b'#'), Just(b'~'), 1_u8..=255,
            ],
            0..40,
        ),
        line in 0..LINES.len(),
    ) {
        // The default of `${x:-...}` is what an empty value shows too, so it changes nothing.
        let (line, before, after) = LINES[line];
        let columns: [&[u8]; 2] = [&value, b"other"];
        let want = printed(line, before, &value, after);
        prop_assert_eq!(run_line(line, &columns), want, "{}", line);
    }

    /// `--dry-run`: what is printed does the same when it is typed.
    #[test]
    fn a_line_that_is_shown_does_the_same(
        value in "[ -~\n]{0,20}", line in 0..LINES.len(),
    ) {
        let (line, before, after) = LINES[line];
        let columns: [&[u8]; 2] = [value.as_bytes(), b"other"];
        let item = columns.join(&b' ');
        let fill = Fill { item: &item, columns: &columns, sequence: 7, slot: 2 };
        let mut shown = Vec::new();
        Template::line(line.as_bytes(), COLUMNS).fill_line(&fill, &mut shown);
        let output = Command::new("/bin/sh")
            .arg("-c")
            .arg(std::ffi::OsStr::from_bytes(&shown))
            .output()
            .unwrap();
        let want = printed(line, before, value.as_bytes(), after);
        prop_assert_eq!(output.stdout, want, "{}", String::from_utf8_lossy(&shown));
    }
}

#[test]
fn arithmetic_takes_numbers() {
    assert_eq!(run_line("echo $(( {1} * (1 + {2}) ))", &[b"6", b"6"]), b"42\n");
    assert_eq!(run_line("echo `expr {1} + 1`", &[b"6"]), b"7\n");
    assert_eq!(run_line("wc -c <", &[b"/dev/null"]).trim_ascii(), b"0");
}

#[test]
fn where_a_shell_puts_nothing_in_a_placeholder_is_refused() {
    for line in ["cat <<'EOF'\n{}\nEOF\n", "cat <<\\EOF\n{}\nEOF", "cat <<- E\"O\"F\n\tx{}\n"] {
        assert_eq!(
            Template::shell_line(line.as_bytes(), COLUMNS),
            Err(QuotedHereDocument),
            "{line}"
        );
    }
    assert_eq!(run_line("cat <<'EOF'\n$x\nEOF\necho {1}", &[b"a b"]), b"$x\na b\n");
}

#[test]
fn many_placeholders_have_a_parameter_each() {
    let columns: Vec<Vec<u8>> = (1..=12).map(|n| format!("c{n}").into_bytes()).collect();
    let columns: Vec<_> = columns.iter().map(Vec::as_slice).collect();
    let line: String = (1..=12).map(|n| format!(" {{{n}}}")).collect();
    let want = (1..=12).map(|n| format!("c{n}")).collect::<Vec<_>>().join(" ");
    assert_eq!(run_line(&format!("echo{line}"), &columns), format!("{want}\n").into_bytes());
}
