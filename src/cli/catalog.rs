//! `backup catalog`.

use clap::Subcommand;
use serde_json::json;

use super::Exit;
use super::output::{Printer, count};
use super::setup::{Setup, StorageArgs};

#[derive(Debug, Subcommand)]
pub(super) enum CatalogCommand {
    #[command(after_help = "\
Examples:
  backup catalog rebuild")]
    /// Read every manifest anew from the storages. The catalog is a cache: nothing else depends on
    /// it
    Rebuild,
}

pub(super) async fn run(
    setup: &Setup,
    command: CatalogCommand,
    printer: &Printer,
) -> anyhow::Result<Exit> {
    let CatalogCommand::Rebuild = command;
    let reading = setup.reading(&StorageArgs { storage: None }, None).await?.of_all()?;
    reading.engine.forget_manifests().await?;
    let listing = reading.list().await;
    drop(reading);
    if printer.is_json() {
        printer.document(
            &json!({ "snapshots": listing.snapshots.len(), "unlisted": listing.unlisted }),
        );
    } else {
        printer.text(&format!(
            "The catalog has {} now.\n",
            count(listing.snapshots.len() as u64, "manifest")
        ));
        for (storage, error) in &listing.unlisted {
            printer.note(&format!("`{storage}` could not be listed: {error}"));
        }
    }
    Ok(if listing.unlisted.is_empty() { Exit::Done } else { Exit::Failed })
}
