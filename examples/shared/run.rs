//! What programs that train need: signals that ask for the end, and an output that may go away before it.

use cotangent::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

/// How a shell reports a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;
/// The exit code of a run that ended well, but whose output could not be written (a full disk).
const UNHEARD: u8 = 1;

/// Why nothing can be written to the standard output any more.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// A flag that is set by what asks a process to end: Ctrl-C (SIGINT), `kill`, `docker stop`, batch systems (SIGTERM), a connection that
/// is closed (SIGHUP). A second Ctrl-C does not wait for what is going on.
pub fn stop_on_signals(name: &str) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let register = || -> io::Result<()> {
        // The first sees the flag unset and does nothing.
        signal_hook::flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&stop))?;
        signal_hook::flag::register(SIGINT, Arc::clone(&stop))?;
        signal_hook::flag::register(SIGTERM, Arc::clone(&stop))?;
        // Under `nohup` a closed connection must not end the run.
        if !is_ignored(SIGHUP) {
            signal_hook::flag::register(SIGHUP, Arc::clone(&stop))?;
        }
        Ok(())
    };
    // Without handlers signals still end the program, only less politely.
    if let Err(e) = register() {
        let _ = writeln!(io::stderr(), "{name}: signals will not stop it cleanly: {e}");
    }
    stop
}

/// Whether whoever started this process let it ignore a signal, where the system tells.
fn is_ignored(signal: i32) -> bool {
    let status = cotangent::io::read_file("/proc/self/status", 1 << 20).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let mask = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// `println!` for a run that goes on when nobody reads (`| head`), or the output's disk is full: says so once, on the error stream.
pub fn say(name: &str, line: impl Display) {
    if !is_heard() {
        return;
    }
    let mut out = io::stdout().lock();
    if let Err(e) = writeln!(out, "{line}").and_then(|()| out.flush()) {
        let _ = writeln!(io::stderr(), "{name}: the output cannot be written any more, the run goes on without it: {e}");
        let _ = LOST.set(e);
    }
}

/// Whether what is said is written.
pub fn is_heard() -> bool {
    LOST.get().is_none()
}

/// Reports how the program ended: 0; 2 with one line; 1 when all went well but its output is not complete.
pub fn exit(name: &str, result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => match LOST.get() {
            // Whoever read the output has seen enough.
            None => ExitCode::SUCCESS,
            Some(e) if e.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Some(_) => ExitCode::from(UNHEARD),
        },
        Err(e) => {
            // Not `eprintln!`: it panics when nobody reads.
            let _ = writeln!(io::stderr(), "{name}: {e}");
            ExitCode::from(2)
        }
    }
}
