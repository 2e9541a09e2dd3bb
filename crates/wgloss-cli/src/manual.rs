//! What shells and `man` want to know of the command line.

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::Cli;
use crate::files::write_out;

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "wgloss", &mut script);
    write_out(&mut &script[..])
}

/// Prints the page of a command, of the program itself where none is named.
pub fn page(path: &[String]) -> Result<()> {
    let mut command = Cli::command();
    command.build();
    let mut name = command.get_name().to_owned();
    for word in path {
        let found = command.get_subcommands().find(|command| {
            command.get_name() == word || command.get_all_aliases().any(|alias| alias == word)
        });
        command = found.cloned().with_context(|| {
            let known: Vec<_> = command.get_subcommands().map(clap::Command::get_name).collect();
            format!("man {word}: expected one of {}", known.join(", "))
        })?;
        name = format!("{name}-{}", command.get_name());
    }
    let mut page = Vec::new();
    // `man` knows it by a name of one word
    clap_mangen::Man::new(command.name(name)).render(&mut page)?;
    write_out(&mut &page[..])
}
