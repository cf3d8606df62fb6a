//! Where items come from, and that no byte of them is lost on the way: lists, files, standard input, their
//! products and links, columns, separators, runtimes, against a model of what each means.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use fastrand::Rng;
use widemap_tests::{run, widemap};

/// Cases of the fuzz. `WIDEMAP_FUZZ_CASES` says another number.
const CASES: u64 = 600;

/// Bytes that mean something to somebody, and some that do not.
const BYTES: &[u8] = b"ab \t,;'\"\\$`*?[]{}()<>|&#~!%^=-+:/.\xc3\xa9\xff\r\n\x01";

/// One list of values.
struct List {
    values: Vec<Vec<u8>>,
    is_file: bool,
    is_linked: bool,
    /// The last value lacks its end.
    is_open: bool,
}

/// What the values of a list are after they were read.
fn value(rng: &mut Rng, without: &[u8]) -> Vec<u8> {
    let length = rng.usize(0..8);
    let bytes = (0..length).map(|_| BYTES[rng.usize(0..BYTES.len())]);
    bytes.filter(|byte| !without.contains(byte)).collect()
}

fn list(rng: &mut Rng, separator: u8, is_linked: bool) -> List {
    let is_file = rng.bool();
    let count = rng.usize(0..4);
    let mut values: Vec<_> = (0..count)
        .map(|_| match is_file {
            true => value(rng, &[separator]),
            false => value(rng, &[]),
        })
        .collect();
    // These are cut off a command line before anything else.
    values.retain(|value| !matches!(value.as_slice(), b":::" | b":::+" | b"::::" | b"::::+"));
    // What is open and empty is no value at all.
    let is_open = is_file && values.last().is_some_and(|last| !last.is_empty()) && rng.bool();
    List { values, is_file, is_linked, is_open }
}

fn file_of(list: &List, separator: u8) -> Vec<u8> {
    let mut bytes = list.values.join(&separator);
    if !list.values.is_empty() && !list.is_open {
        bytes.push(separator);
    }
    bytes
}

/// The columns of a value.
fn columns(value: &[u8], colsep: Option<u8>) -> Vec<Vec<u8>> {
    match colsep {
        None => vec![value.to_vec()],
        Some(byte) => {
            let parts = value.split(|&other| other == byte);
            parts.map(|part| part.trim_ascii().to_vec()).collect()
        }
    }
}

/// The items: lists of columns.
fn items(lists: &[List], colsep: Option<u8>) -> Vec<Vec<Vec<u8>>> {
    let mut groups: Vec<Vec<Vec<Vec<u8>>>> = Vec::new();
    for list in lists {
        let own: Vec<_> = list.values.iter().map(|value| columns(value, colsep)).collect();
        match groups.last_mut().filter(|_| list.is_linked) {
            Some(group) => {
                let shorter = group.len().min(own.len());
                group.truncate(shorter);
                group.iter_mut().zip(own).for_each(|(item, own)| item.extend(own));
            }
            None => groups.push(own),
        }
    }
    let one: Vec<Vec<Vec<u8>>> = vec![Vec::new()];
    groups.iter().fold(one, |items, group| {
        let with = |item: &Vec<Vec<u8>>| {
            group.iter().map(|own| [item.clone(), own.clone()].concat()).collect::<Vec<_>>()
        };
        items.iter().flat_map(with).collect()
    })
}

/// A map of several columns by a command: what it must print, or none if it is refused.
fn a_command(rng: &mut Rng, directory: &Path) {
    let separator = [b'\n', 0, b';'][rng.usize(0..3)];
    let colsep = rng.bool().then_some(b',');
    let count = rng.usize(1..4);
    let lists = (0..count).map(|index| {
        let is_linked = index > 0 && rng.bool();
        list(rng, separator, is_linked)
    });
    let lists: Vec<_> = lists.collect();
    let want = items(&lists, colsep);
    let width = if colsep.is_none() { count } else { 3 };
    let (first, second) = (rng.usize(1..=width), rng.usize(1..=width));
    let is_shell = rng.bool();
    let mut command = widemap(&["map", "-q", "--local", "2", "--chunk", "3"]);
    match separator {
        0 => drop(command.arg("-0")),
        b';' => drop(command.args(["-d", ";"])),
        _ => {}
    }
    if colsep.is_some() {
        command.args(["--colsep", ","]);
    }
    // One list without columns has no second one, and `{2}` is no placeholder there.
    let (first, second) = if width == 1 { (1, 1) } else { (first, second) };
    match is_shell {
        true => command
            .args(["--shell", "--"])
            .arg(format!("printf '<%s>%s.' {{{first}}} \"{{{second}}}\"")),
        false => command.args([
            "--",
            "printf",
            "<%s>%s.",
            &format!("{{{first}}}"),
            &format!("{{{second}}}"),
        ]),
    };
    let mut stdin = Vec::new();
    let mut read_stdin = false;
    for (index, list) in lists.iter().enumerate() {
        let sign = match (list.is_file, list.is_linked) {
            (false, false) => ":::",
            (false, true) => ":::+",
            (true, false) => "::::",
            (true, true) => "::::+",
        };
        command.arg(sign);
        match (list.is_file, read_stdin || rng.bool()) {
            (false, _) => {
                command.args(list.values.iter().map(|value| OsString::from_vec(value.clone())));
            }
            (true, false) => {
                read_stdin = true;
                stdin = file_of(list, separator);
                command.arg("-");
            }
            (true, true) => {
                let path = directory.join(format!("list-{index}"));
                std::fs::write(&path, file_of(list, separator)).unwrap();
                command.arg(path);
            }
        }
    }
    let shown = format!("{command:?}");
    let done = run(command, &stdin);
    let empty = Vec::new();
    let column =
        |item: &Vec<Vec<u8>>, number: usize| item.get(number - 1).unwrap_or(&empty).clone();
    let wanted: Vec<u8> = want
        .iter()
        .flat_map(|item| {
            let (first, second) = (column(item, first), column(item, second));
            [b"<".to_vec(), first, b">".to_vec(), second, b".".to_vec()].concat()
        })
        .collect();
    assert_eq!(done.status, 0, "{shown}: {}", done.stderr);
    assert!(
        done.stdout == wanted,
        "{shown}\n{:?}\n{:?}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&wanted)
    );
}

/// A map of one list by what gives items back as they are.
fn a_copy(rng: &mut Rng, directory: &Path) {
    let separator = [b'\n', 0, b';'][rng.usize(0..3)];
    let mut list = list(rng, separator, false);
    let how = ["builtin", "filter", "pipe", "tag"][rng.usize(0..4)];
    if !list.is_file && matches!(how, "filter" | "pipe") {
        // They go there in lines.
        list.values.iter_mut().for_each(|value| value.retain(|&byte| byte != separator));
    }
    if how == "filter" && separator == b';' {
        // A program that knows lines of its own.
        return;
    }
    let mut command = widemap(&["map", "-q", "--local", "2"]);
    match separator {
        0 => drop(command.arg("-0")),
        b';' => drop(command.args(["-d", ";"])),
        _ => {}
    }
    match how {
        "builtin" => command.args(["--builtin", "identity"]),
        "filter" => command.args(["--filter", "--", "cat"]),
        "pipe" => command.args(["--block", "8", "--pipe", "--", "cat"]),
        _ => command.args(["--tag", "--builtin", "identity"]),
    };
    let mut stdin = Vec::new();
    match (list.is_file, rng.bool()) {
        (false, _) => {
            command.arg(":::").args(list.values.iter().map(|v| OsString::from_vec(v.clone())));
        }
        (true, true) => stdin = file_of(&list, separator),
        (true, false) => {
            let path = directory.join("list");
            std::fs::write(&path, file_of(&list, separator)).unwrap();
            command.arg("::::").arg(path);
        }
    }
    let shown = format!("{command:?}");
    let done = run(command, &stdin);
    let ended = |value: &Vec<u8>| [value.as_slice(), &[separator]].concat();
    let wanted: Vec<u8> = match how {
        // What is printed is not touched.
        "pipe" if list.is_file => file_of(&list, separator),
        "tag" => {
            let tagged = |value: &Vec<u8>| {
                let result = ended(value);
                let lines = result.split_inclusive(|&byte| byte == separator);
                let lines = lines.map(|line| [value, &b"\t"[..], line].concat());
                lines.collect::<Vec<_>>().concat()
            };
            list.values.iter().flat_map(tagged).collect()
        }
        _ => list.values.iter().flat_map(ended).collect(),
    };
    assert_eq!(done.status, 0, "{shown}: {}", done.stderr);
    assert!(
        done.stdout == wanted,
        "{shown}\n{:?}\n{:?}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&wanted)
    );
}

#[test]
fn no_byte_is_lost_whatever_items_come_from_and_run_through() {
    let cases = std::env::var("WIDEMAP_FUZZ_CASES").ok();
    let cases = cases.map_or(CASES, |cases| cases.parse().expect("a number of cases"));
    let seed = std::env::var("WIDEMAP_FUZZ_SEED").ok();
    let seed = seed.map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("a number"));
    println!("WIDEMAP_FUZZ_SEED={seed} WIDEMAP_FUZZ_CASES={cases}");
    let work = |thread: u64| {
        let directory = tempfile::tempdir().unwrap();
        for case in (thread..cases).step_by(2) {
            let mut rng = Rng::with_seed(seed.wrapping_add(case));
            match rng.u8(0..5) {
                0..3 => a_command(&mut rng, directory.path()),
                _ => a_copy(&mut rng, directory.path()),
            }
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| work(1));
        work(0);
        other.join().unwrap();
    });
}

#[test]
fn a_product_takes_its_first_list_as_it_comes() {
    // A list without end: what is made of its head is there at once.
    let mut command = std::process::Command::new("bash");
    let widemap = widemap_tests::binary("widemap");
    let script = format!(
        "yes | {} map -q --local 2 echo {{2}}{{1}} :::: - ::: 1 2 | head -n 2000 | sort | uniq -c",
        widemap.display()
    );
    command.args(["-c", &script]);
    widemap_tests::without_configuration(&mut command);
    let done = run(command, b"").exits(0);
    let counts: Vec<_> = done.text().split_whitespace().map(str::to_owned).collect();
    assert_eq!(counts, ["1000", "1y", "1000", "2y"]);
}

#[test]
fn a_function_of_python_takes_columns_as_a_list() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("f.py");
    std::fs::write(&file, "def f(x): return [type(x).__name__, sum(x)]\n").unwrap();
    let name = format!("{}:f", file.display());
    let done =
        run(widemap(&["map", "--python", &name, ":::", "1", "2.5", ":::", "10"]), b"").exits(0);
    assert_eq!(done.text(), "[\"list\",11]\n[\"list\",12.5]\n");
}

#[test]
fn what_makes_no_sense_of_items_is_refused_with_what_does() {
    for (words, problem) in [
        (&["echo", "{3}", ":::", "a", ":::", "b"][..], "{3} names a column, and there are 2 lists"),
        (&["echo", "{-3}", ":::", "a", ":::", "b"], "{-3} names a column"),
        (&["--pipe", "wc", ":::", "a", ":::", "b"], "--pipe takes lines"),
        (&["--builtin", "identity", "--colsep", ",", ":::", "a"], "--builtin takes lines"),
        (&["--colsep", "((", "echo", ":::", "a"], "no regular expression"),
        (&["--colsep", "a*", "echo", ":::", "a"], "matches where there is nothing"),
        (&["-d", "ab", "echo", ":::", "a"], "is not one byte"),
        (&["-I", "", "echo", ":::", "a"], "at least one character"),
        (&["echo", "::::"], "names no file"),
        (&["echo", "::::", "/no/such/file", ":::", "a"], "cannot open /no/such/file"),
        (&["echo", "::::", "-", "::::", "-"], "standard input is named twice"),
        (
            &["--from-failures", "f", "echo", ":::", "a"],
            "both from `:::` and from `--from-failures`",
        ),
    ] {
        let done = run(widemap(&[&["map"], words].concat()), b"").exits(2);
        assert!(done.stderr.contains(problem), "{words:?}: {}", done.stderr);
        assert_eq!(done.text(), "");
    }
}
