//! Picks the program to be, from the name it was started under or from the first word, and hands over.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use quorate::program::Program;

/// What one thread allocates another one frees here all day, which costs glibc's allocator a lock each time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_else(|| OsString::from("quorate"));
    let name = Path::new(&name).file_name().unwrap_or_default().to_string_lossy().into_owned();
    Program::of(&name, words.collect()).run()
}
