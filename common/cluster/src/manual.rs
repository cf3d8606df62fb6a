//! What is printed and typed from a program's command line: man pages, and completions for shells.

use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

/// Writes a man page for a program and each of its subcommands to `man/man1` of a directory, and completions for
/// bash, fish and zsh to `completions`.
///
/// # Errors
/// If that cannot be written.
pub fn write(mut program: Command, directory: &Path) -> io::Result<()> {
    let (pages, completions) = (directory.join("man/man1"), directory.join("completions"));
    std::fs::create_dir_all(&pages)?;
    std::fs::create_dir_all(&completions)?;
    let name = program.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        let _path = clap_complete::generate_to(shell, &mut program, &name, &completions)?;
    }
    clap_mangen::generate_to(program, pages)
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    use super::*;

    #[test]
    fn a_page_for_each_command_and_completions_for_each_shell() {
        let program = Command::new("widen")
            .about("Widens")
            .subcommand(Command::new("all").arg(Arg::new("far").long("far").help("how far")));
        let directory = tempfile::tempdir().unwrap();
        write(program, directory.path()).unwrap();
        let text = |path: &str| std::fs::read_to_string(directory.path().join(path)).unwrap();
        assert!(text("man/man1/widen.1").contains("Widens"));
        assert!(text("man/man1/widen-all.1").contains("how far"));
        for completions in ["widen.bash", "widen.fish", "_widen"] {
            assert!(text(&format!("completions/{completions}")).contains("far"), "{completions}");
        }
    }
}
