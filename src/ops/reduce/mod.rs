//! Ops that make one number, or one position, of the elements along some axes, and those that walk along an axis: running sums and
//! sorting. They share the split of a shape into groups (`backend::cpu::reduce`) and the fixed order of sums. What each op of
//! [`group`] has in common (its derivative needs the whole group again) is a trait there.

pub mod any_all;
pub mod argmax;
pub mod cumsum;
pub mod group;
pub mod mean;
pub mod sort;
pub mod sum;
