//! Where the items come from: one list as it lies there, or items that are made of several.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use widemap_common::framing::Framing;
use widemap_common::limits::ITEM_BYTES_MAX;

use super::again;
use super::argv::List;
use super::options::{JobArgs, Trim};
use crate::data::{ColumnSeparator, ItemForm, Recipe, Source, Values};
use crate::error::MapError;

/// Items, and how they lie in what is sent.
#[derive(Debug)]
pub(super) struct Items {
    pub(super) source: Source,
    pub(super) framing: Framing,
    /// How many columns each has, if that is known.
    pub(super) columns: Option<usize>,
}

/// What was named, in the order of the product.
type Groups = Vec<Vec<Values>>;

/// Where the items come from. Items of the command line are length-prefixed: they may hold any byte.
///
/// # Errors
/// What makes no sense of what was typed.
pub(super) fn find(args: &JobArgs, lists: Vec<List>, separator: u8) -> Result<Items, MapError> {
    let split = args.colsep.clone().map(|mut split: ColumnSeparator| {
        split.trims_left = matches!(args.trim, None | Some(Trim::L | Trim::Lr | Trim::Rl));
        split.trims_right = matches!(args.trim, None | Some(Trim::R | Trim::Lr | Trim::Rl));
        split
    });
    if args.frames {
        if let Some(list) = lists.first() {
            return Err(MapError::TwoSources(list.sign, "--frames"));
        }
        let framing = Framing::LengthPrefixed;
        return Ok(Items { source: Source::Stdin, framing, columns: None });
    }
    if let Some(path) = &args.from_failures {
        let other = lists.first().map(|list| list.sign);
        let other = other.or_else(|| (!args.input.is_empty()).then_some("-a"));
        if let Some(other) = other {
            return Err(MapError::TwoSources(other, "--from-failures"));
        }
        return failed(args, path, separator);
    }
    let mut groups = groups(&args.input, lists)?;
    if groups.is_empty() {
        if std::io::stdin().is_terminal() {
            return Err(MapError::NoItems);
        }
        groups.push(vec![Values::Stdin]);
    }
    let stdin = |values: &&Values| **values == Values::Stdin;
    if groups.iter().flatten().filter(stdin).count() > 1 {
        return Err(flag("-", "standard input is named twice, and can be read once"));
    }
    let lists: usize = groups.iter().map(Vec::len).sum();
    if let ([group], None) = (groups.as_mut_slice(), &split)
        && lists == 1
        && let Some(values) = group.pop()
    {
        return one(args, values, separator);
    }
    made(args, groups, split, separator, lists)
}

fn groups(inputs: &[PathBuf], lists: Vec<List>) -> Result<Groups, MapError> {
    let mut groups: Groups = inputs.iter().map(|path| vec![file(path.clone())]).collect();
    for List { sign, is_values, is_linked, words } in lists {
        let named: Vec<Values> = match is_values {
            true => vec![Values::List(words.into_iter().map(OsString::into_vec).collect())],
            false => words.into_iter().map(|word| file(PathBuf::from(word))).collect(),
        };
        if named.is_empty() {
            return Err(flag(sign, "names no file: `:::: FILE` reads items from it, a line each"));
        }
        match groups.last_mut().filter(|_| is_linked) {
            Some(group) => group.extend(named),
            None => groups.extend(named.into_iter().map(|values| vec![values])),
        }
    }
    Ok(groups)
}

fn file(path: PathBuf) -> Values {
    if path.as_os_str() == "-" { Values::Stdin } else { Values::File(path) }
}

fn one(args: &JobArgs, values: Values, separator: u8) -> Result<Items, MapError> {
    let framing = Framing::Separator(separator);
    let (source, framing) = match values {
        Values::List(list) => listed(list, args, separator)?,
        Values::File(path) => (Source::File(path), framing),
        Values::Stdin => (Source::Stdin, framing),
    };
    Ok(Items { source, framing, columns: None })
}

/// A list of items; a program that reads them on its standard input has them in lines, as it expects
/// them.
fn listed(
    items: Vec<Vec<u8>>,
    args: &JobArgs,
    separator: u8,
) -> Result<(Source, Framing), MapError> {
    if let Some(long) = items.iter().find(|item| item.len() > ITEM_BYTES_MAX) {
        return Err(flag(":::", format!("an item of {} bytes is too long", long.len())));
    }
    let is_python = args.python.python.is_some();
    if (args.filter || is_python)
        && let Some(number) = items.iter().position(|item| item.contains(&separator))
    {
        let number = number + 1;
        let problem = match args.filter {
            true => format!(
                "item {number} has an end of a line in it, and the program is to answer each line with one \
                 (-0 gives it items that end in NUL)"
            ),
            false => format!("item {number} has an end of a line in it (-0 has items end in NUL)"),
        };
        return Err(flag(if args.filter { "--filter" } else { "--python" }, problem));
    }
    let in_lines = args.pipe || args.filter || is_python || args.wasm.is_some();
    let framing = if in_lines { Framing::Separator(separator) } else { Framing::LengthPrefixed };
    Ok((Source::Items(items), framing))
}

/// Items of several columns.
fn made(
    args: &JobArgs,
    groups: Groups,
    split: Option<ColumnSeparator>,
    separator: u8,
    lists: usize,
) -> Result<Items, MapError> {
    let form = form(args, separator, if lists > 1 { "several lists" } else { "--colsep" })?;
    let framing = framing(form, separator);
    let columns = split.is_none().then_some(lists);
    let source = Source::Made(Recipe { groups, split, separator, form });
    Ok(Items { source, framing, columns })
}

/// What an item of several columns is to the function.
fn form(args: &JobArgs, separator: u8, what: &'static str) -> Result<ItemForm, MapError> {
    let other = [
        (args.filter, "--filter"),
        (args.pipe, "--pipe"),
        (args.wasm.is_some(), "--wasm"),
        (args.builtin.is_some(), "--builtin"),
    ];
    if let Some((_, name)) = other.into_iter().find(|(is, _)| *is) {
        let problem = format!(
            "items have columns here ({what}), and {name} takes lines: make them lines before \
             (`paste`, `tr`), or run a command for each ({{1}} {{2}})"
        );
        return Err(flag(name, problem));
    }
    match args.python.python.is_some() {
        true if !matches!(separator, 0 | b'\n') => Err(flag(
            "-d",
            "items of several columns go to Python as arrays of JSON, which may have that byte in them",
        )),
        true if args.python.text => Err(flag(
            "--text",
            "items of several columns go to Python as arrays of JSON: leave --text out, and write strings as \
             JSON does ('\"a\"')",
        )),
        true => Ok(ItemForm::Json),
        false => Ok(ItemForm::Columns),
    }
}

fn framing(form: ItemForm, separator: u8) -> Framing {
    match form {
        ItemForm::Columns => Framing::Columns,
        ItemForm::Json => Framing::Separator(separator),
    }
}

/// The items of a file of failures.
fn failed(args: &JobArgs, path: &std::path::Path, separator: u8) -> Result<Items, MapError> {
    let items = again::items(path)?;
    let has_columns = items.iter().any(|item| item.columns.is_some()) || args.colsep.is_some();
    if has_columns && args.python.python.is_none() {
        form(args, separator, "--from-failures")?;
        let source = Source::Items(items.into_iter().map(again::Item::framed).collect());
        let framing = Framing::Columns;
        return Ok(Items { source, framing, columns: None });
    }
    let items = items.into_iter().map(|item| item.whole).collect();
    let (source, framing) = listed(items, args, separator)?;
    Ok(Items { source, framing, columns: None })
}

fn flag(flag: &'static str, problem: impl Into<String>) -> MapError {
    MapError::Flag { flag, problem: problem.into() }
}
