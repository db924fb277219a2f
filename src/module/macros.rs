//! The macro that makes a struct or an enum a tree.

/// Writes [`Module`](crate::Module) for a struct or an enum: `module!(Linear { weight, bias } skip { dropout })`.
///
/// Every field is in one of the two lists (parameters and sub-modules first, everything else under `skip`), so a
/// forgotten field does not compile. What is under `skip` is no part of the tree: a layer there is neither trained nor saved, without a
/// word, and a tensor is a constant. A field's checkpoint name is its own unless given: `{ wte as "embed_tokens" }`.
///
/// ```compile_fail,E0063
/// use cotangent::{module, Param};
/// struct Net { a: Param, b: Param, n: usize }
/// module!(Net { a } skip { n }); // missing field `b` in initializer of `Net`
/// ```
///
/// Generic structs name their parameters. One without a bound is a module; for any other write its bounds, all of them:
///
/// ```
/// use cotangent::{F32, Key, Module, Param, Result, Tensor, module, nn::{Layer, Linear}};
/// #[derive(Clone)]
/// struct Gated<L> { inner: L, gate: Param }
/// module!(Gated<L> { inner, gate });
///
/// #[derive(Clone)]
/// struct Stack<L: Layer, T: Copy, const N: usize> { layers: [L; N], tag: T }
/// module!(Stack<L: Layer, T: Copy, const N: usize> { layers } skip { tag });
///
/// let layer = |k| Linear::no_bias(3, 3, F32, Key::new(k));
/// let gated = Gated { inner: Stack { layers: [layer(1)?, layer(2)?], tag: 'x' }, gate: Tensor::scalar(1f32)?.into() };
/// assert_eq!(gated.names(), ["inner.layers.0.weight", "inner.layers.1.weight", "gate"]);
/// # Ok::<(), cotangent::Error>(())
/// ```
///
/// `struct` may stand before the name, `enum` must. Tuple structs list names of their own for the fields, which count from 0; of an enum every variant is in the list. A variant
/// `Dense(m)` adds nothing to the names, the fields of `Scale { gate }` have theirs:
///
/// ```
/// use cotangent::{F32, Key, Module, Param, Tensor, module, nn::Linear};
/// #[derive(Clone)]
/// struct Pair(Linear, Param);
/// module!(Pair(layer, scale));
///
/// #[derive(Clone)]
/// enum Mixer { Dense(Linear), Scale { gate: Param, power: i32 }, Nothing }
/// module!(enum Mixer { Dense(m), Scale { gate } skip { power }, Nothing });
///
/// let pair = Pair(Linear::no_bias(3, 3, F32, Key::new(1))?, Tensor::scalar(1f32)?.into());
/// assert_eq!(pair.names(), ["0.weight", "1"]);
/// assert_eq!(Mixer::Dense(pair.0).names(), ["weight"]);
/// assert_eq!(Mixer::Scale { gate: pair.1, power: 2 }.names(), ["gate"]);
/// assert!(Mixer::Nothing.names().is_empty());
/// # Ok::<(), cotangent::Error>(())
/// ```
#[macro_export]
macro_rules! module {
    (struct $($rest:tt)*) => { $crate::module!($($rest)*); };
    // Generic parameters become a list of declarations and a list of arguments.
    (enum $name:ident < $($rest:tt)*) => { $crate::module!(@generics [enum] $name [] [] $($rest)*); };
    (enum $name:ident $($body:tt)*) => { $crate::module!(@enum $name [] [] $($body)*); };
    ($name:ident < $($rest:tt)*) => { $crate::module!(@generics [struct] $name [] [] $($rest)*); };
    ($name:ident $($body:tt)*) => { $crate::module!(@struct $name [] [] $($body)*); };
    (@generics [$kind:ident] $name:ident $decl:tt $arg:tt > $($body:tt)*) => {
        $crate::module!(@$kind $name $decl $arg $($body)*);
    };
    (@generics $kind:tt $name:ident $decl:tt $arg:tt , $($rest:tt)*) => {
        $crate::module!(@generics $kind $name $decl $arg $($rest)*);
    };
    (@generics $kind:tt $name:ident [$($decl:tt)*] [$($arg:tt)*] const $p:ident : $t:ident $($rest:tt)*) => {
        $crate::module!(@generics $kind $name [$($decl)* const $p: $t,] [$($arg)* $p,] $($rest)*);
    };
    (@generics $kind:tt $name:ident [$($decl:tt)*] [$($arg:tt)*] $p:lifetime $($rest:tt)*) => {
        $crate::module!(@generics $kind $name [$($decl)* $p,] [$($arg)* $p,] $($rest)*);
    };
    (@generics $kind:tt $name:ident [$($decl:tt)*] [$($arg:tt)*] $p:ident : $($rest:tt)*) => {
        $crate::module!(@bounds $kind $name [$($decl)*] [$($arg)* $p,] $p [] $($rest)*);
    };
    (@generics $kind:tt $name:ident [$($decl:tt)*] [$($arg:tt)*] $p:ident $($rest:tt)*) => {
        $crate::module!(@generics $kind $name [$($decl)* $p: $crate::Module,] [$($arg)* $p,] $($rest)*);
    };
    // Bounds reach to the next comma or the end of the list; one with parameters of its own goes into a trait without.
    (@bounds $kind:tt $name:ident [$($decl:tt)*] $arg:tt $p:ident [$($bound:tt)*] > $($rest:tt)*) => {
        $crate::module!(@generics $kind $name [$($decl)* $p: $($bound)*,] $arg > $($rest)*);
    };
    (@bounds $kind:tt $name:ident [$($decl:tt)*] $arg:tt $p:ident [$($bound:tt)*] , $($rest:tt)*) => {
        $crate::module!(@generics $kind $name [$($decl)* $p: $($bound)*,] $arg $($rest)*);
    };
    (@bounds $kind:tt $name:ident $decl:tt $arg:tt $p:ident [$($bound:tt)*] $next:tt $($rest:tt)*) => {
        $crate::module!(@bounds $kind $name $decl $arg $p [$($bound)* $next] $($rest)*);
    };
    (@struct $name:ident [$($decl:tt)*] [$($arg:tt)*]
        { $($field:ident $(as $label:literal)?),* $(,)? } $(skip { $($skip:ident),* $(,)? })?
    ) => {
        impl<$($decl)*> $crate::Module for $name<$($arg)*> {
            fn visit(&mut self, v: &mut $crate::Visitor<'_>) {
                // Never called. A pattern written here may not name the fields of another crate's struct in its error, a literal does.
                #[allow(unreachable_code, clippy::diverging_sub_expression, clippy::panic)]
                let _ = || -> Self { $name { $($field: ::core::panic!(),)* $($($skip: ::core::panic!(),)*)? } };
                let Self { $($field,)* .. } = self;
                $(v.field($crate::module!(@label $field $($label)?), $field);)*
                let _ = v;
            }
        }
    };
    (@struct $name:ident [$($decl:tt)*] [$($arg:tt)*] ( $($field:ident),* $(,)? ) $(;)?) => {
        impl<$($decl)*> $crate::Module for $name<$($arg)*> {
            fn visit(&mut self, v: &mut $crate::Visitor<'_>) {
                let Self($($field),*) = self;
                let mut n = 0usize;
                $(
                    v.field(&n.to_string(), $field);
                    n += 1;
                )*
                let _ = (v, n);
            }
        }
    };
    (@enum $name:ident [$($decl:tt)*] [$($arg:tt)*] { $($variants:tt)* }) => {
        impl<$($decl)*> $crate::Module for $name<$($arg)*> {
            fn visit(&mut self, v: &mut $crate::Visitor<'_>) {
                $crate::module!(@variants self v [] $($variants)*);
            }
        }
    };
    (@struct $name:ident $decl:tt $arg:tt $($body:tt)*) => {
        ::core::compile_error!(::core::concat!(
            "`", stringify!($name), "`: of a struct, module! lists the names of its fields, without types: ",
            "`module!(", stringify!($name), " { layer, weight } skip { size })`, and of a tuple struct names for them: `module!(Pair(first, second))`; ",
            "an enum has `enum` before its name: `module!(enum ", stringify!($name), " { Dense(m), Scale { gate } skip { power }, Nothing })`"
        ));
    };
    (@enum $name:ident $decl:tt $arg:tt $($body:tt)*) => {
        ::core::compile_error!(::core::concat!(
            "`", stringify!($name), "`: of an enum, module! lists the variants: `module!(enum ", stringify!($name),
            " { Dense(m), Scale { gate } skip { power }, Nothing })`"
        ));
    };
    // One arm of the match after the other.
    (@variants $self:ident $v:ident [$($done:tt)*]) => {
        match $self { $($done)* }
    };
    (@variants $self:ident $v:ident [$($done:tt)*] $variant:ident ($only:ident) $(, $($rest:tt)*)?) => {
        $crate::module!(@variants $self $v [$($done)* Self::$variant($only) => $crate::Module::visit($only, $v),] $($($rest)*)?);
    };
    (@variants $self:ident $v:ident [$($done:tt)*]
        $variant:ident { $($field:ident $(as $label:literal)?),* $(,)? } $(skip { $($skip:ident),* $(,)? })? $(, $($rest:tt)*)?
    ) => {
        $crate::module!(@variants $self $v [
            $($done)*
            Self::$variant { $($field,)* .. } => {
                #[allow(unreachable_code, clippy::diverging_sub_expression, clippy::panic)]
                let _ = || -> Self { Self::$variant { $($field: ::core::panic!(),)* $($($skip: ::core::panic!(),)*)? } };
                $($v.field($crate::module!(@label $field $($label)?), $field);)*
            }
        ] $($($rest)*)?);
    };
    (@variants $self:ident $v:ident [$($done:tt)*] $variant:ident $(, $($rest:tt)*)?) => {
        $crate::module!(@variants $self $v [$($done)* Self::$variant => {}] $($($rest)*)?);
    };
    (@variants $self:ident $v:ident $done:tt $($rest:tt)*) => {
        ::core::compile_error!(
            "of an enum, module! lists the variants: `Dense(m)` for one module, `Scale { gate } skip { power }` for named fields, `Nothing` for none"
        )
    };
    (@label $field:ident) => { stringify!($field) };
    (@label $field:ident $label:literal) => { $label };
}
