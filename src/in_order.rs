//! Sorted maps and sets of what an iterator gives, and sorted lists.

use std::cmp::Ordering;

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

/// Sorts a list; of two that are alike the first one stays before the other.
///
/// The sort of the standard library is in the program for every type and order, 2 to 4 KB each; here it sorts numbers of places, once.
pub(crate) fn sort_by<T>(items: &mut Vec<T>, order: impl Fn(&T, &T) -> Ordering) {
    let mut places: Vec<usize> = (0..items.len()).collect();
    sort_places(&mut places, &|one, other| order(&items[one], &items[other]));
    let mut left: Vec<Option<T>> = std::mem::take(items).into_iter().map(Some).collect();
    items.extend(places.into_iter().filter_map(|place| left[place].take()));
}

fn sort_places(places: &mut [usize], order: &dyn Fn(usize, usize) -> Ordering) {
    places.sort_by(|one, other| order(*one, *other));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_sorted_as_the_standard_library_sorts_it() {
        // Words of all lengths, many of them alike, in an order that only looks like one.
        let words: Vec<(usize, String)> = (0..1000_usize).map(|n| (n, "b".repeat(n * n % 17))).collect();
        for length in [0, 1, 2, 3, 20, 21, 1000] {
            let (mut ours, mut theirs) = (words[..length].to_vec(), words[..length].to_vec());
            sort_by(&mut ours, |one, other| other.1.cmp(&one.1));
            theirs.sort_by(|one, other| other.1.cmp(&one.1));
            assert_eq!(ours, theirs);
        }
    }
}
