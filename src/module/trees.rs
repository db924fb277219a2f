//! Trees of trees: options, boxes, lists, tuples, maps.

use super::{Module, Visitor};
use crate::shape::up_to_twelve;
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
up_to_twelve!(tuples);

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
