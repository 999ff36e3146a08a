//! Entry point of `entente`; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    entente::cli::main()
}
