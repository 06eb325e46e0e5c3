//! `golden DIR`: holds `sconce-stats` against every vector file of a folder, and says what passed, what failed and what has
//! no implementation yet. The exit code is 1 if anything failed.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool: its output is what it is for"
)]

mod runner;

use runner::{Report, check};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let [folder] = arguments.as_slice() else {
        eprintln!("usage: golden DIR");
        return ExitCode::from(2);
    };
    let files = match vector_files(Path::new(folder)) {
        Ok(files) if files.is_empty() => {
            eprintln!("{}: expected *.json, found none", folder.display());
            return ExitCode::FAILURE;
        }
        Ok(files) => files,
        Err(error) => {
            eprintln!("{}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    };
    let mut total = Report::default();
    let (mut whole, mut broken, mut missing) = (0, 0, 0);
    for file in &files {
        let report = match fs::read_to_string(file) {
            Ok(text) => check(&text),
            Err(error) => Report::broken(format!("cannot be read: {error}")),
        };
        let name = file.file_stem().unwrap_or_default().display();
        println!("{name:<32} {report}");
        for failure in &report.failures {
            println!("    {failure}");
        }
        match (report.failures.is_empty(), report.not_yet) {
            (false, _) => broken += 1,
            (true, 0) => whole += 1,
            (true, _) => missing += 1,
        }
        total.add(report);
    }
    println!("{} files: {whole} passed, {broken} failed, {missing} not yet; cases: {total}", files.len());
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every `*.json` of the folder, by name.
fn vector_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
