//! `backup completions`.

use clap::Args;
use clap_complete::Shell;

use super::Exit;
use super::output::Printer;

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(super) fn run(
    args: &CompletionsArgs,
    printer: &Printer,
    command: &mut clap::Command,
) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "backup", &mut script);
    printer.text(&String::from_utf8_lossy(&script));
    Ok(Exit::Done)
}
