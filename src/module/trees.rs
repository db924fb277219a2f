//! Trees of trees: options, boxes, lists, tuples, maps.

use super::{Module, Visitor};
use std::collections::{BTreeMap, HashMap};

impl<M: Module> Module for Option<M> {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        if let Some(m) = self {
            m.visit(v);
        }
    }
}

impl<M: Module + ?Sized> Module for Box<M> {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        (**self).visit(v);
    }
}

impl<M: Module> Module for Vec<M> {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        for (i, m) in self.iter_mut().enumerate() {
            v.field(&i.to_string(), m);
        }
    }
}

impl<M: Module, const N: usize> Module for [M; N] {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        for (i, m) in self.iter_mut().enumerate() {
            v.field(&i.to_string(), m);
        }
    }
}

macro_rules! tuples {
    ($(($($T:ident $i:tt),+);)*) => {$(
        impl<$($T: Module),+> Module for ($($T,)+) {
            fn visit(&mut self, v: &mut Visitor<'_>) {
                $(v.field(stringify!($i), &mut self.$i);)+
            }
        }
    )*};
}
tuples! {
    (A 0);
    (A 0, B 1);
    (A 0, B 1, C 2);
    (A 0, B 1, C 2, D 3);
    (A 0, B 1, C 2, D 3, E 4);
    (A 0, B 1, C 2, D 3, E 4, F 5);
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6);
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8);
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9);
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10);
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11);
}

/// By name, in the order of the names.
impl<M: Module> Module for BTreeMap<String, M> {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        for (name, m) in self.iter_mut() {
            v.field(name, m);
        }
    }
}

/// By name, in the order of the names: that of the map changes from run to run.
impl<M: Module, S> Module for HashMap<String, M, S> {
    fn visit(&mut self, v: &mut Visitor<'_>) {
        let mut entries: Vec<(&String, &mut M)> = self.iter_mut().collect();
        entries.sort_unstable_by_key(|&(name, _)| name);
        for (name, m) in entries {
            v.field(name, m);
        }
    }
}

impl Module for () {
    fn visit(&mut self, _: &mut Visitor<'_>) {}
}
