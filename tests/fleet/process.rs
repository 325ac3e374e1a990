//! A real process of the package in the fleet's namespaces. It can be killed at a chosen one of its system calls, and shown another time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What is to be run.
pub(crate) struct Start<'a> {
    pub(crate) program: &'a Path,
    pub(crate) role: &'a str,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) sandbox: &'a Path,
    /// Who counts its calls, if anybody does.
    pub(crate) watch: Option<Arc<Watch>>,
    /// It is process 1 of a PID namespace, as in a container: what it has started ends with it.
    pub(crate) contains: bool,
}

/// See the module.
pub(crate) struct Process {
    pid: Pid,
    ended: Arc<Mutex<Option<ExitStatus>>>,
    buried: Arc<AtomicBool>,
}

impl Process {
    /// Starts it, in the namespaces of this thread.
    pub(crate) fn start(start: Start<'_>) -> std::io::Result<Self> {
        let log = |name: &str| File::options().create(true).append(true).open(start.sandbox.join(name));
        let mut command = match &start.watch {
            // It begins when it is traced.
            Some(_) => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", "read -r _ && exec \"$@\" </dev/null", "sh"]).arg(start.program).stdin(Stdio::piped());
                shell
            }
            None => {
                let mut command = Command::new(start.program);
                command.stdin(Stdio::null());
                command
            }
        };
        command
            .arg(start.role)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .envs(&start.env)
            .env("MESOS_SANDBOX", start.sandbox)
            .current_dir(start.sandbox)
            .stdout(log("stdout")?)
            .stderr(log("stderr")?);
        let (ended, buried) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
        let (end, grave) = (ended.clone(), buried.clone());
        let (start_contains, watch) = (start.contains, start.watch);
        let (tell, told) = std::sync::mpsc::channel();
        // Only the thread that has begun to trace a process hears of it, so one thread does it all.
        thread::spawn(move || {
            let apart = if start_contains { unshare(CloneFlags::CLONE_NEWPID).map_err(Into::into) } else { Ok(()) };
            let mut child = match apart.and_then(|()| command.spawn()) {
                Ok(child) => child,
                Err(error) => return drop(tell.send(Err(error))),
            };
            let pid = Pid::from_raw(child.id().cast_signed());
            let _ = tell.send(Ok(pid));
            let status = match &watch {
                Some(watch) => follow(pid, watch, || drop(child.stdin.take().map(|mut gate| gate.write_all(b"\n")))),
                None => wait(&mut child),
            };
            *end.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
            grave.store(true, Ordering::Release);
        });
        let pid = told.recv().unwrap_or_else(|error| Err(std::io::Error::other(error)))?;
        Ok(Self { pid, ended, buried })
    }

    /// How it has ended, if it has.
    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a signal, unless it has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        if !self.buried.load(Ordering::Acquire) {
            // It may end at this very moment.
            let _ = kill(self.pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    child.wait().unwrap_or_else(|_| ExitStatus::from_raw(libc::SIGKILL))
}

/// What is made with this is a thread, and no process.
const THREAD: u64 = libc::CLONE_THREAD as u64;

/// Which system calls count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counts {
    /// Changes of files, and the starts of other processes.
    Files,
    /// These, also by those other processes, and their being signalled.
    FilesAndChildren,
    /// Changes of files, starts, and whenever it connects or sends something.
    FilesAndTalk,
}

/// Counts what processes do, and kills one at a chosen call.
pub(crate) struct Watch {
    counts: Counts,
    /// Writes elsewhere, as to a log, count for nothing.
    below: Vec<PathBuf>,
    /// Seconds by which the clock is ahead of the machine's; none: it is the machine's.
    clock: Option<AtomicI64>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    armed: bool,
    calls: Vec<String>,
    strike_at: Option<usize>,
    struck: bool,
}

impl Watch {
    /// Counts nothing yet.
    pub(crate) fn new(counts: Counts, below: &[&str]) -> Arc<Self> {
        Arc::new(Self { counts, below: below.iter().map(PathBuf::from).collect(), clock: None, inner: Mutex::default() })
    }

    /// Counts nothing, and shows a process and all that it starts another time: `ahead` seconds more, or less, than it is.
    pub(crate) fn with_clock(ahead: i64) -> Arc<Self> {
        let (counts, below) = (Counts::FilesAndChildren, Vec::new());
        Arc::new(Self { counts, below, clock: Some(AtomicI64::new(ahead)), inner: Mutex::default() })
    }

    /// Sets such a clock.
    pub(crate) fn set_clock(&self, ahead: i64) {
        if let Some(clock) = &self.clock {
            clock.store(ahead, Ordering::Release);
        }
    }

    /// A program that has just been loaded is not told of the kernel's page (vDSO) that gives the time without a call.
    fn hide_clock(&self, thread: Pid) -> nix::Result<()> {
        const AT_SYSINFO_EHDR: i64 = 33;
        const AT_IGNORE: i64 = 1;
        const WORD: u64 = 8;
        if self.clock.is_none() {
            return Ok(());
        }
        let read = |at: u64| ptrace::read(thread, at as ptrace::AddressType);
        let stack = ptrace::getregs(thread)?.rsp;
        // Number of arguments, these, 0, variables, 0, pairs of what the kernel says.
        let mut at = stack + WORD * (read(stack)?.cast_unsigned() + 2);
        while read(at)? != 0 {
            at += WORD;
        }
        at += WORD;
        loop {
            match read(at)? {
                0 => return Ok(()),
                AT_SYSINFO_EHDR => ptrace::write(thread, at as ptrace::AddressType, AT_IGNORE)?,
                _ => {}
            }
            at += 2 * WORD;
        }
    }

    /// Changes what a call for the time has given.
    fn shift_clock(&self, thread: Pid) -> nix::Result<()> {
        let Some(ahead) = self.clock.as_ref().map(|clock| clock.load(Ordering::Acquire)).filter(|ahead| *ahead != 0) else {
            return Ok(());
        };
        let mut registers = ptrace::getregs(thread)?;
        let (call, result) = (registers.orig_rax.cast_signed(), registers.rax.cast_signed());
        let clocks = [libc::CLOCK_REALTIME, libc::CLOCK_REALTIME_COARSE].map(|clock| clock as u64);
        let seconds = match call {
            libc::SYS_clock_gettime if result == 0 && clocks.contains(&registers.rdi) => registers.rsi,
            libc::SYS_gettimeofday if result == 0 && registers.rdi != 0 => registers.rdi,
            libc::SYS_time if result > 0 => {
                registers.rax = (result + ahead).cast_unsigned();
                ptrace::setregs(thread, registers)?;
                // The same is given where it was asked to be put.
                if registers.rdi == 0 {
                    return Ok(());
                }
                registers.rdi
            }
            _ => return Ok(()),
        };
        let at = seconds as ptrace::AddressType;
        ptrace::write(thread, at, ptrace::read(thread, at)? + ahead)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts from now on, and kills instead of the call of this number, from 1.
    pub(crate) fn arm(&self, strike_at: Option<usize>) {
        *self.lock() = Inner { armed: true, strike_at, ..Inner::default() };
    }

    /// What was counted, and whether somebody was killed.
    pub(crate) fn seen(&self) -> (Vec<String>, bool) {
        let inner = self.lock();
        (inner.calls.clone(), inner.struck)
    }

    /// Whether the call that is about to be made is the one.
    fn strikes(&self, thread: Pid) -> bool {
        let Ok(registers) = ptrace::getregs(thread) else { return false };
        // Before a call this stands where its result will.
        if registers.rax != u64::MAX - Errno::ENOSYS as u64 + 1 {
            return false;
        }
        let Some(what) = self.counted(thread, &registers) else { return false };
        let mut inner = self.lock();
        if !inner.armed {
            return false;
        }
        inner.calls.push(what);
        let strikes = !inner.struck && inner.strike_at == Some(inner.calls.len());
        inner.struck |= strikes;
        strikes
    }

    /// What a call does, if it counts.
    fn counted(&self, thread: Pid, registers: &libc::user_regs_struct) -> Option<String> {
        let descriptor = || std::fs::read_link(format!("/proc/{thread}/fd/{}", registers.rdi)).ok();
        let of_file = |word: &str| {
            let path = descriptor()?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.below.iter().any(|below| path.starts_with(below)).then(|| format!("{word} {name}"))
        };
        let of_socket = || descriptor()?.to_string_lossy().starts_with("socket:").then(|| "send".to_owned());
        let by_name = |word: &str| Some(word.to_owned());
        match registers.orig_rax as i64 {
            libc::SYS_write | libc::SYS_writev | libc::SYS_pwrite64 => {
                of_file("write").or_else(|| of_socket().filter(|_| self.counts == Counts::FilesAndTalk))
            }
            libc::SYS_fsync | libc::SYS_fdatasync => of_file("fsync"),
            libc::SYS_fchmod => of_file("fchmod"),
            libc::SYS_fchown => of_file("fchown"),
            libc::SYS_ftruncate => of_file("ftruncate"),
            libc::SYS_openat if registers.rdx & (libc::O_CREAT as u64) != 0 => by_name("create"),
            libc::SYS_mkdir | libc::SYS_mkdirat => by_name("mkdir"),
            libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => by_name("rename"),
            libc::SYS_symlink | libc::SYS_symlinkat | libc::SYS_link | libc::SYS_linkat => by_name("link"),
            libc::SYS_unlink | libc::SYS_unlinkat | libc::SYS_rmdir => by_name("unlink"),
            libc::SYS_chmod | libc::SYS_fchmodat => by_name("chmod"),
            libc::SYS_connect | libc::SYS_sendto | libc::SYS_sendmsg if self.counts == Counts::FilesAndTalk => by_name("send"),
            libc::SYS_vfork | libc::SYS_fork => by_name("start"),
            libc::SYS_clone if registers.rdi & THREAD == 0 => by_name("start"),
            libc::SYS_clone3 => {
                let flags = ptrace::read(thread, registers.rdi as ptrace::AddressType).ok()?;
                (flags.cast_unsigned() & THREAD == 0).then(|| "start".to_owned())
            }
            libc::SYS_execve if self.counts == Counts::FilesAndChildren => by_name("exec"),
            libc::SYS_kill | libc::SYS_pidfd_send_signal if self.counts == Counts::FilesAndChildren => by_name("signal"),
            _ => None,
        }
    }

    /// What its tracer is told of beside calls.
    fn options(&self) -> ptrace::Options {
        use ptrace::Options;
        let mut all = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACECLONE;
        all.set(Options::PTRACE_O_TRACEEXEC, self.clock.is_some());
        match self.counts {
            Counts::FilesAndChildren => all | Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK,
            _ => all,
        }
    }
}

/// Lets a process run from call to call, all its threads, and kills it where the watch says.
fn follow(pid: Pid, watch: &Watch, begin: impl FnOnce()) -> ExitStatus {
    // Whoever has ended before is waited for all the same.
    let _ = ptrace::seize(pid, watch.options()).and_then(|()| ptrace::interrupt(pid));
    begin();
    loop {
        // What other threads of this process trace is none of ours.
        match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Ok(WaitStatus::Exited(which, code)) if which == pid => return ExitStatus::from_raw(code << 8),
            Ok(WaitStatus::Signaled(which, signal, _)) if which == pid => return ExitStatus::from_raw(signal as i32),
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                // Whoever has been killed meanwhile needs no time.
                let _ = watch.shift_clock(thread);
                if watch.strikes(thread) {
                    // It stays where it is, before the call.
                    let _ = kill(pid, Signal::SIGKILL);
                } else {
                    let _ = ptrace::syscall(thread, None);
                }
            }
            Ok(WaitStatus::Stopped(thread, signal)) => drop(ptrace::syscall(thread, signal)),
            Ok(WaitStatus::PtraceEvent(thread, _, event)) => {
                if event == libc::PTRACE_EVENT_EXEC {
                    let _ = watch.hide_clock(thread);
                }
                let _ = ptrace::syscall(thread, None);
            }
            Ok(_) => {}
            Err(Errno::EINTR) => {}
            Err(_) => return ExitStatus::from_raw(libc::SIGKILL),
        }
    }
}
