//! The program: what the command line says, as an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    dcv_splice::run(std::env::args_os().collect())
}
