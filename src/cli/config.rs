//! `backup config`.

use clap::Subcommand;

use super::Exit;
use super::output::Printer;
use crate::config;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    #[command(after_help = "\
Examples:
  backup config schema > holdfast.schema.json")]
    /// Print the JSON Schema of the configuration file, for editors
    Schema,
}

pub(super) fn run(command: &ConfigCommand, printer: &Printer) -> anyhow::Result<Exit> {
    let ConfigCommand::Schema = command;
    printer.text(&format!("{:#}\n", config::schema()));
    Ok(Exit::Done)
}
