//! For tests: a piece of work in a process of its own, which ends or meets an error at a chosen one of its system calls.
//!
//! The work is an ignored test of this same program that calls [`work`]; a test that interrupts it calls [`run`] once for each of its
//! system calls. Both go by ptrace, so that no call is left out, whatever the work calls one day.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, gettid};

const DIR: &str = "TEST_INTERRUPTED_DIR";
const WORK: &str = "TEST_INTERRUPTED_WORK";
const THREAD: &str = "the work is thread ";
const SAYS: &str = "the work says: ";

/// What happens at a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process is killed instead of it.
    Kill,
    /// The same, at those calls only before which something may have changed since the last such call: what a kill leaves on the disk is
    /// at every other call what it was at the one before.
    KillAfterChange,
    /// Of what it was to write only the first half is written, then the process is killed.
    Tear,
    /// It fails with this error, if it is one that changes something on a disk.
    Fail(Errno),
}

impl Fault {
    /// Whether it can happen at the call that is about to be made after `last`.
    fn suits(self, last: Option<&libc::user_regs_struct>, call: &libc::user_regs_struct) -> bool {
        match self {
            Self::Kill => true,
            Self::KillAfterChange => !last.is_some_and(changes_nothing),
            Self::Tear => call.orig_rax == libc::SYS_write as u64 && call.rdx > 1,
            Self::Fail(_) => changes_a_disk(call),
        }
    }
}

/// How the work ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The fault has happened to it; where it lived on, this is what it said in the end.
    Struck(Option<String>),
    /// It has fewer such calls, and ended by itself with these words.
    Ended(String),
}

/// In the process of the work: which one is asked for, and the directory to do it in.
pub(crate) fn asked() -> (String, PathBuf) {
    (std::env::var(WORK).unwrap(), std::env::var(DIR).unwrap().into())
}

/// Does the work, in a thread that the other process traces. It tells its result in one line.
pub(crate) fn work(work: impl FnOnce() -> String + Send) {
    let traced = move || {
        ptrace::traceme().unwrap();
        println!("{THREAD}{}", gettid());
        raise(Signal::SIGSTOP).unwrap();
        let result = work();
        raise(Signal::SIGSTOP).unwrap();
        println!("\n{SAYS}{}", result.replace('\n', " | "));
    };
    std::thread::scope(|scope| scope.spawn(traced).join()).unwrap();
}

/// Runs the ignored test `test` in `dir`, with a fault at number `at`, from 1, of the system calls that suit it.
pub(crate) fn run(test: &str, work: &str, dir: &Path, at: usize, fault: Fault) -> Outcome {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test, "--nocapture"])
        .env(WORK, work)
        .env(DIR, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    let thread = loop {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "{test} does not exist, or does not call work()");
        if let Some((_, thread)) = line.split_once(THREAD) {
            break Pid::from_raw(thread.trim().parse().unwrap());
        }
    };
    assert!(matches!(waited(thread), WaitStatus::Stopped(_, Signal::SIGSTOP)));
    ptrace::setoptions(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL).unwrap();
    let mut end = || {
        kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
        // A thread that is traced is buried by its tracer, and its process not before.
        while !matches!(waited(thread), WaitStatus::Signaled(..)) {}
        child.wait().unwrap();
    };
    let (mut suited, mut last) = (0, None);
    while next_stop(thread) != Signal::SIGSTOP {
        let mut registers = ptrace::getregs(thread).unwrap();
        let suits = fault.suits(last.as_ref(), &registers);
        suited += usize::from(suits);
        last = Some(registers);
        let strikes = suits && suited == at;
        match fault {
            Fault::Kill | Fault::KillAfterChange if strikes => {
                end();
                return Outcome::Struck(None);
            }
            Fault::Tear if strikes => {
                registers.rdx /= 2;
                ptrace::setregs(thread, registers).unwrap();
            }
            Fault::Fail(_) if strikes => {
                // A call that there is not.
                registers.orig_rax = u64::MAX;
                ptrace::setregs(thread, registers).unwrap();
            }
            _ => {}
        }
        assert_eq!(next_stop(thread), Signal::SIGTRAP, "a system call returns");
        match fault {
            Fault::Tear if strikes => {
                end();
                return Outcome::Struck(None);
            }
            Fault::Fail(errno) if strikes => {
                registers = ptrace::getregs(thread).unwrap();
                registers.rax = i64::from(-(errno as i32)) as u64;
                ptrace::setregs(thread, registers).unwrap();
            }
            _ => {}
        }
    }
    ptrace::detach(thread, None).unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
    let (_, rest) = rest.split_once(SAYS).unwrap_or_else(|| panic!("{rest}"));
    let words = rest.lines().next().unwrap_or_default().to_owned();
    if suited >= at { Outcome::Struck(Some(words)) } else { Outcome::Ended(words) }
}

/// Strikes at every system call that suits the fault in turn, each time on what `prepare` makes anew, and has `check` look at what is left. Returns how many
/// calls it struck. Two processes at a time.
pub(crate) fn at_every_call<T: Send>(
    test: &str,
    work: &str,
    fault: Fault,
    prepare: impl Fn(&Path) -> T + Sync,
    check: impl Fn(usize, T, Option<String>) + Sync,
) -> usize {
    let struck = std::sync::atomic::AtomicUsize::new(0);
    let one_in_two = |first: usize| {
        for at in (first..).step_by(2) {
            let dir = directory();
            let prepared = prepare(dir.path());
            match run(test, work, dir.path(), at, fault) {
                Outcome::Ended(_) => return,
                Outcome::Struck(words) => {
                    struck.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    check(at, prepared, words);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| one_in_two(1));
        one_in_two(2);
    });
    struck.into_inner()
}

/// A directory in memory, where there is such a thing: what is asked here is the order of the calls, not the disk's patience.
pub(crate) fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// Lets the thread run to the next entry or return of a system call (SIGTRAP), or to the end of its work (SIGSTOP).
fn next_stop(thread: Pid) -> Signal {
    let mut signal = None;
    loop {
        ptrace::syscall(thread, signal).unwrap();
        match waited(thread) {
            WaitStatus::PtraceSyscall(_) => return Signal::SIGTRAP,
            WaitStatus::Stopped(_, Signal::SIGSTOP) => return Signal::SIGSTOP,
            WaitStatus::Stopped(_, other) => signal = Some(other),
            other => panic!("the work ended by itself: {other:?}"),
        }
    }
}

fn waited(thread: Pid) -> WaitStatus {
    waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap()
}

fn changes_a_disk(registers: &libc::user_regs_struct) -> bool {
    let creates = registers.rdx & libc::O_CREAT as u64 != 0;
    match registers.orig_rax as i64 {
        libc::SYS_openat => creates,
        libc::SYS_write | libc::SYS_fsync | libc::SYS_fchmod | libc::SYS_fchown | libc::SYS_mkdir | libc::SYS_mkdirat => true,
        libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 | libc::SYS_symlinkat => true,
        libc::SYS_unlink | libc::SYS_unlinkat | libc::SYS_rmdir | libc::SYS_chmod => true,
        _ => false,
    }
}

/// Nothing on a disk, that is.
fn changes_nothing(registers: &libc::user_regs_struct) -> bool {
    match registers.orig_rax as i64 {
        libc::SYS_openat => registers.rdx & (libc::O_CREAT | libc::O_TRUNC) as u64 == 0,
        libc::SYS_read | libc::SYS_close | libc::SYS_lseek | libc::SYS_fcntl | libc::SYS_flock | libc::SYS_readlinkat => true,
        libc::SYS_fstat | libc::SYS_newfstatat | libc::SYS_statx | libc::SYS_fsync => true,
        libc::SYS_brk | libc::SYS_mmap | libc::SYS_munmap | libc::SYS_mremap | libc::SYS_madvise | libc::SYS_getrandom => true,
        _ => false,
    }
}
