//! Options of GNU parallel that are not ours: what to type instead.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Each option by its names, and what to type instead.
const ADVICE: &[(&[&str], &str)] = &[
    (
        &["-S", "--sshlogin", "--sshloginfile", "--slf"],
        "start widemap-worker on each host, and name it with --worker HOST (deploy/ssh-workers does so by ssh)",
    ),
    (
        &[
            "-n",
            "-N",
            "--max-args",
            "-X",
            "--xargs",
            "-m",
            "-s",
            "--max-chars",
            "-L",
            "-l",
            "--max-lines",
        ],
        "several items for one process: widemap map --pipe -- xargs -n50 COMMAND; columns of one item: --colsep",
    ),
    (
        &["-u", "--ungroup", "--lb", "--line-buffer", "--linebuffer"],
        "results come whole and in order, --unordered as they come; what items write on standard error is shown at once",
    ),
    (&["--group"], "the output of an item is never mixed with another's: leave it out"),
    (
        &["--link", "--xapply"],
        "link two lists with :::+ (widemap map echo {1} {2} ::: a b :::+ 1 2)",
    ),
    (&["--load", "--noswap", "--delay"], "-j N limits what runs at a time, --nice N its urgency"),
    (
        &["--memfree", "--memsuspend"],
        "a worker that is low on memory takes no work (widemap-worker --min-memory); --memory SIZE limits an item",
    ),
    (
        &["--transferfile", "--tf", "--trc", "--transfer", "--basefile", "--bf"],
        "--file PATH brings a file along to each worker; for files of items use a shared directory and --wd",
    ),
    (
        &["--return", "--cleanup"],
        "what a command prints is its result; for files of results use a shared directory and --wd",
    ),
    (&["--onall", "--nonall"], "an item runs on one worker: --require LABEL=VALUE says on which"),
    (
        &["--sqlworker", "--sqlmaster", "--sql", "--sqlandworker"],
        "widemap serve keeps jobs: widemap submit",
    ),
    (
        &["--resume-failed", "--retry-failed"],
        "--from-failures FILE runs only what failed, the file is named in the end",
    ),
    (&["--tagstring"], "--tag writes the item and a tab; --format json has all of it"),
    (
        &["--header", "--hdr"],
        "skip the first line (tail -n +2), and name columns by number: {1} {2}",
    ),
    (&["--shuf"], "shuffle the list: shuf LIST | widemap map"),
    (&["-q", "--quote"], "arguments are passed on as they are, without a shell"),
    (&["--no-run-if-empty", "-r"], "an empty line is an item: grep . leaves empty ones out"),
    (&["-t", "-v", "--verbose", "--vv"], "--dry-run prints the commands, --joblog FILE logs them"),
    (&["--progress", "--progres"], "progress is shown on a terminal anyway: leave it out"),
    (&["-P", "--max-procs"], "-j N"),
    (
        &["--termseq", "--tmux", "--tmuxpane", "--fg", "--semaphore", "--sem", "--id"],
        "widemap has nothing like it",
    ),
    (&["--pipepart", "--pipe-part"], "--pipe with -a FILE reads the file in blocks"),
    (
        &["--recstart", "--recend", "--regexp", "--rrs"],
        "with --pipe a block ends at the end of a line, or at -d BYTE",
    ),
    (
        &["--round-robin", "--roundrobin", "--keep-order-roundrobin"],
        "--filter keeps programs running from line to line",
    ),
    (&["--will-cite", "--citation", "--bibtex"], "leave it out"),
    (
        &["--rpl", "--plus", "-U", "--extensionreplace", "--er", "--basenamereplace", "--bnr"],
        "the placeholders are {} {.} {/} {//} {/.} {#} {%} {1} {2/.}; -I REPL replaces {}",
    ),
    (
        &["--arg-sep", "--argsep", "--arg-file-sep", "--argfilesep"],
        "lists begin with ::: and files with ::::",
    ),
    (
        &["--embed", "--shellquote", "--shebang", "--hostgroups", "--hgrp"],
        "widemap has nothing like it",
    ),
    (
        &["--compress", "--tmpdir", "--files", "--outputasfiles"],
        "results go to standard output, to --output FILE, or to --results DIR",
    ),
    (
        &["--limit", "--filter-hosts", "--workdir-cleanup"],
        "widemap workers says which workers are used, and why others are not",
    ),
    (&["--retry"], "--retries N"),
];

/// What is wrong, and what to type instead.
#[derive(Debug)]
pub(super) struct Advice {
    pub(super) problem: String,
    pub(super) instead: &'static str,
}

/// What to type instead of the option that is not known, if GNU parallel knows it.
pub(super) fn advice(error: &clap::Error, words: &[std::ffi::OsString]) -> Option<Advice> {
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg) else {
                return None;
            };
            if words.get(1).is_some_and(|command| command == "submit")
                && let Some(instead) = elsewhere(given)
            {
                let problem = format!("{given} is not said where a job is handed in");
                return Some(Advice { problem, instead });
            }
            let (names, instead) = find(given)?;
            let problem = format!(
                "{given} is an option of GNU parallel{}, not of widemap",
                also(names, given)
            );
            Some(Advice { problem, instead })
        }
        ErrorKind::MissingRequiredArgument
            if ["--joblog", "--resume"]
                .iter()
                .all(|name| words.iter().any(|word| word == name)) =>
        {
            Some(Advice {
                problem: "--joblog does not hold results, so that --resume cannot go on with it"
                    .to_owned(),
                instead: "--journal DIR keeps what is done, and --journal DIR --resume goes on; --from-failures \
                          FILE runs only what failed",
            })
        }
        _ => None,
    }
}

/// Where an option of `widemap map` is said, if not with `widemap submit`.
fn elsewhere(given: &str) -> Option<&'static str> {
    let name = given.split('=').next().unwrap_or(given);
    Some(match name {
        "--joblog" | "--results" => {
            "submit with --keep-records, and say it where results are collected: widemap results JOB --joblog FILE"
        }
        "--output" | "--failures" | "--receipt" => {
            "say it where results are collected: widemap results JOB --output FILE"
        }
        "--explain-every" => {
            "say it where results are waited for: widemap results JOB --explain-every TIME"
        }
        _ => return None,
    })
}

fn find(given: &str) -> Option<(&'static [&'static str], &'static str)> {
    let name = given.split('=').next().unwrap_or(given);
    ADVICE.iter().find(|(names, _)| names.contains(&name)).copied()
}

/// A name that says more than a letter.
fn also(names: &[&str], given: &str) -> String {
    let long = names.iter().find(|name| name.starts_with("--"));
    match long.filter(|_| !given.starts_with("--")) {
        Some(long) => format!(" ({long})"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    /// Options that are ours, or mean nothing here, and the words that they are said with.
    const ACCEPTED: &[&str] = &[
        "-k",
        "--keep-order",
        "--bar",
        "--eta",
        "-0",
        "--null",
        "-a FILE",
        "--arg-file FILE",
        "-C ,",
        "--colsep ,",
        "-d ,",
        "--delimiter ,",
        "-I ,,",
        "-j 2",
        "--jobs 2",
        "--tag",
        "--joblog FILE",
        "--results DIR",
        "--retries 3",
        "--timeout 5",
        "--halt now,fail=1",
        "--halt 2",
        "--dry-run",
        "--dryrun",
        "--nice 3",
        "--pipe",
        "--pipe --block 1M",
        "--wd DIR",
        "--workdir DIR",
        "--env PATH",
        "--trim n -C ,",
    ];

    fn parse(option: &str) -> Result<Cli, clap::Error> {
        let words = ["widemap", "map"].into_iter().chain(option.split(' ')).chain(["echo"]);
        Cli::try_parse_from(words)
    }

    #[test]
    fn each_option_of_gnu_parallel_is_ours_or_says_what_is() {
        for option in ACCEPTED {
            assert!(parse(option).is_ok(), "{option}: {}", parse(option).unwrap_err());
        }
        for (names, advice) in ADVICE {
            for name in *names {
                // These are ours and mean something else: they are in the list of what differs.
                if ["-q", "-v"].contains(name) {
                    continue;
                }
                let error = parse(name).expect_err(name);
                let told = super::advice(&error, &[]).unwrap_or_else(|| panic!("{name}: {error}"));
                assert!(told.problem.starts_with(name) && told.instead == *advice, "{told:?}");
            }
        }
        for jobs in ["-j 50%", "-j +2", "-j 0", "-j -1"] {
            let told = parse(jobs).expect_err(jobs).to_string();
            assert!(told.contains("slots"), "{told}");
        }
        let words: Vec<_> = ["--joblog", "f", "--resume"].map(Into::into).to_vec();
        let error = parse("--joblog f --resume").unwrap_err();
        assert!(super::advice(&error, &words).unwrap().instead.contains("--journal"));
    }
}
