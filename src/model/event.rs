//! What may happen. Numbers in an event mean what they can mean at its time, so that every part of a story is a story.

use super::cluster::{Kind, Write};
use super::random::Random;

/// See the module. Machines are told by their numbers, modulo how many there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    // Steps.
    /// The controller makes a pass; where none runs, Marathon starts one.
    Pass,
    /// One that another has replaced makes a pass.
    OldPass,
    /// Tasks, Marathon and what is on its way go on, as far as the bits say.
    Work(u64),
    /// Seconds pass.
    Wait(u16),

    // Agents.
    Join(Kind),
    Leave(u8),
    Die(u8),
    GiveUp(u8),
    Return(u8),
    Rebuild(u8),
    Fill(u8),
    Empty(u8),
    Drain(u8),
    Undrain(u8),
    CutOff(u8),
    Reconnect(u8),
    MakeUnwritable(u8),
    MakeWritable(u8),
    Skew(u8, i16),

    // Tasks.
    KillNode(u8),
    KillRegistry(u8),
    SilenceRegistry(u8),

    // The cluster's services.
    Lock(u8, u8),
    MarathonFails(u8),
    MetronomeFails(u8),
    LateLooks(u8),
    LateWrites(bool),
    DoubleWrites(bool),
    LateLetters(bool),
    DoubleLetters(bool),
    LoseLetters(bool),
    DenySecrets(bool),
    /// Documents of one kind are refused, or of none any more.
    Refuse(u8),

    // Controllers.
    KillController,
    KillInPass(u8),
    KillInStore(u8),
    SecondController(u8),

    // People.
    RunJob(u8),
    CancelRuns(u8),
    ChangeOptions(u8),
    LoseCa,
    LoseOrderKey,
    LoseEnrolmentKey,
    Age(u8),
    RenewOperatorsCertificate,
    ChangeUsers(u8),
    DeletePod,
    ScalePod(u8),
    DeleteRegistry,
    DeleteJob(u8),
    Uninstall(bool),

    /// Faults end, but for an agent that stays cut off if it says true; and all must be well within bounds.
    Heal(bool),
}

impl Event {
    /// Its kind, for counting.
    pub(super) fn kind(&self) -> String {
        let text = format!("{self:?}");
        text.split('(').next().unwrap_or_default().to_string()
    }

    /// Any event but those that end a round.
    pub(super) fn any(random: &mut Random) -> Self {
        let n = random.next() as u8;
        let on = n & 1 == 0;
        // Most of the time something goes on.
        match random.below(100) {
            0..25 => return Self::Pass,
            25..48 => return Self::Work(random.next()),
            48..56 => return Self::Wait(random.below(60) as u16),
            56..58 => return Self::OldPass,
            58..60 => return Self::Wait(random.below(2000) as u16),
            _ => {}
        }
        match random.below(53) {
            0 | 1 => Self::Join(match n % 6 {
                0 => Kind::Public,
                1 => Kind::Gpu,
                2 => Kind::Remote,
                _ => Kind::Private,
            }),
            2 => Self::Leave(n),
            3 => Self::Die(n),
            4 => Self::GiveUp(n),
            5 | 6 => Self::Return(n),
            7 => Self::Rebuild(n),
            8 => Self::Fill(n),
            9 => Self::Empty(n),
            10 => Self::Drain(n),
            11 => Self::Undrain(n),
            12 => Self::CutOff(n),
            13 => Self::Reconnect(n),
            14 => Self::MakeUnwritable(n),
            15 => Self::MakeWritable(n),
            16 => Self::Skew(n, random.below(3000) as i16 - 1500),
            17 | 18 => Self::KillNode(n),
            19 => Self::KillRegistry(n),
            20 => Self::SilenceRegistry(n),
            21 | 22 => Self::Lock(n, random.below(6) as u8),
            23 => Self::MarathonFails(n % 5),
            24 => Self::MetronomeFails(n % 5),
            25 => Self::LateLooks(n % 4),
            26 => Self::LateWrites(on),
            27 => Self::DoubleWrites(on),
            28 => Self::LateLetters(on),
            29 => Self::DoubleLetters(on),
            30 => Self::LoseLetters(on),
            31 => Self::DenySecrets(on),
            32 => Self::KillController,
            33 => Self::KillInPass(n % 8),
            34 => Self::KillInStore(n % 6),
            35 => Self::SecondController(n),
            36..=39 => Self::RunJob(n),
            40 => Self::CancelRuns(n),
            41..=43 => Self::ChangeOptions(n),
            44 => Self::LoseCa,
            45 => match n % 3 {
                0 => Self::LoseOrderKey,
                1 => Self::LoseEnrolmentKey,
                _ => Self::LoseCa,
            },
            46 | 47 => Self::Age(n % 20 + 1),
            48 => Self::RenewOperatorsCertificate,
            49 => Self::ChangeUsers(n),
            50 => Self::ScalePod(n % 12),
            51 => match n % 4 {
                0 => Self::DeletePod,
                1 => Self::DeleteRegistry,
                _ => Self::DeleteJob(n),
            },
            52 => Self::Refuse(n % (2 * Write::NUMBERS)),
            _ => Self::Pass,
        }
    }

    /// The names of all kinds.
    pub(super) const KINDS: [&str; 51] = [
        "Pass",
        "OldPass",
        "Work",
        "Wait",
        "Join",
        "Leave",
        "Die",
        "GiveUp",
        "Return",
        "Rebuild",
        "Fill",
        "Empty",
        "Drain",
        "Undrain",
        "CutOff",
        "Reconnect",
        "MakeUnwritable",
        "MakeWritable",
        "Skew",
        "KillNode",
        "KillRegistry",
        "SilenceRegistry",
        "Lock",
        "MarathonFails",
        "MetronomeFails",
        "LateLooks",
        "LateWrites",
        "DoubleWrites",
        "LateLetters",
        "DoubleLetters",
        "LoseLetters",
        "DenySecrets",
        "Refuse",
        "KillController",
        "KillInPass",
        "KillInStore",
        "SecondController",
        "RunJob",
        "CancelRuns",
        "ChangeOptions",
        "LoseCa",
        "LoseOrderKey",
        "LoseEnrolmentKey",
        "Age",
        "RenewOperatorsCertificate",
        "ChangeUsers",
        "DeletePod",
        "ScalePod",
        "DeleteRegistry",
        "DeleteJob",
        "Uninstall",
    ];
}
