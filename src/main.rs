//! The program `backup`: see the library for the map.

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast::cli::main()
}
