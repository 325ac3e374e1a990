//! Sorted maps and sets of what an iterator gives.

/// `collect` for sorted maps and sets: one after the other is put where it belongs.
///
/// The one of the standard library sorts them first, by code of its own for every iterator in the program: 4 KB each.
pub(crate) trait InOrder: Iterator + Sized {
    /// All that comes, in order. Of two with the same key the last one counts, as with `collect`.
    fn in_order<C: Default + Extend<Self::Item>>(self) -> C {
        let mut all = C::default();
        all.extend(self);
        all
    }
}

impl<I: Iterator> InOrder for I {}
