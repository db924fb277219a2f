//! The crate's one error type.
//!
//! Layer L0. A message reads `op: what differs: both operands: hint (at file:line)`, so that a user can act on it
//! without a debugger. Errors are values on every path that data can reach: shapes, dtypes, sizes that overflow,
//! files and devices never panic.

use std::fmt;
use std::panic::Location;

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, coarsely. Use the predicates of [`Error`] (`is_shape`, …) to branch on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Extents, ranks or axes do not fit together.
    Shape,
    /// A dtype that the op does not take, or operands of different dtypes.
    Dtype,
    /// An index (token id, class, axis position) outside its range.
    Index,
    /// Any other argument outside its documented range.
    Argument,
    /// An allocation failed or its size overflows the address space.
    OutOfMemory,
    /// The device, its driver or a library it needs is missing.
    DeviceUnavailable,
    /// Values are on different devices, or on another than the one that was asked.
    Device,
    /// A watched tensor did not take part in the result.
    Disconnected,
    /// A tape was used against its rules (consumed, mixed with another, captured by a checkpoint).
    Tape,
    /// Reading or writing a file failed.
    Io,
    /// A file's content is damaged or not of the expected format.
    CorruptFile,
    /// A gradient check found a wrong derivative.
    GradCheck,
    /// A value or a cotangent became NaN or infinite while anomaly mode watched.
    NonFinite,
    /// A captured step did something that cannot be replayed (read a value back, took other memory than declared).
    Capture,
    /// This crate contradicts itself: please report it.
    Internal,
}

/// Why an operation could not be done.
///
/// Opaque on purpose: match with the predicates, show with `{}`.
///
/// ```
/// use cotangent::Tensor;
/// let a = Tensor::from_slice(&[0f32; 12], [4, 3])?;
/// let b = Tensor::from_slice(&[0f32; 10], [5, 2])?;
/// let e = a.matmul(&b).unwrap_err();
/// assert!(e.is_shape());
/// assert!(e.to_string().starts_with("matmul: inner extents differ: lhs [4, 3], rhs [5, 2] (3 vs 5)"));
/// # Ok::<(), cotangent::Error>(())
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    op: Option<&'static str>,
    message: String,
    at: Option<&'static Location<'static>>,
    names: Vec<String>,
    involved: Involved,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The parameters that an op took, and where it is in a list of layers.
#[derive(Default)]
struct Involved {
    /// Name, dtype and shape.
    parameters: Vec<(String, String)>,
    /// The names are those in the whole model.
    whole: bool,
    /// Positions in lists of layers, from the outermost.
    path: String,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $make:ident, $is:ident => $kind:ident;)*) => {
        impl Error {
            $(
                #[doc = concat!("An error of kind [`ErrorKind::", stringify!($kind), "`].")]
                pub fn $make(message: impl Into<String>) -> Self {
                    Self::new(ErrorKind::$kind, message)
                }
                $(#[$doc])*
                pub fn $is(&self) -> bool {
                    self.0.kind == ErrorKind::$kind
                }
            )*
        }
    };
}

kinds! {
    /// Extents, ranks or axes did not fit together.
    shape, is_shape => Shape;
    /// A dtype was not accepted.
    dtype, is_dtype => Dtype;
    /// An index was out of range.
    index, is_index => Index;
    /// Another argument was out of its documented range.
    argument, is_argument => Argument;
    /// An allocation failed.
    out_of_memory, is_out_of_memory => OutOfMemory;
    /// A device, driver or library is missing.
    device_unavailable, is_device_unavailable => DeviceUnavailable;
    /// Values are on different devices, or on another than the one that was asked.
    device, is_device => Device;
    /// A watched tensor did not take part in the result; [`Error::names`] lists them.
    disconnected, is_disconnected => Disconnected;
    /// A tape was used against its rules.
    tape, is_tape => Tape;
    /// Reading or writing failed.
    io, is_io => Io;
    /// A file is damaged or of another format.
    corrupt_file, is_corrupt_file => CorruptFile;
    /// A gradient check failed.
    gradcheck, is_gradcheck => GradCheck;
    /// Anomaly mode found a NaN or an infinity.
    non_finite, is_non_finite => NonFinite;
    /// A step could not be captured, or not be replayed.
    capture, is_capture => Capture;
    /// This crate contradicts itself.
    internal, is_internal => Internal;
}

impl Error {
    /// An error of the given kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            op: None,
            message: message.into(),
            at: None,
            names: Vec::new(),
            involved: Involved::default(),
            source: None,
        }))
    }

    /// The coarse kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Name of the op that refused, when one did.
    pub fn op(&self) -> Option<&'static str> {
        self.0.op
    }

    /// Source line of the caller that led here, when known.
    pub fn location(&self) -> Option<&'static Location<'static>> {
        self.0.at
    }

    /// Names the error is about: parameters that received no gradient, or those that an op took which refused.
    pub fn names(&self) -> &[String] {
        &self.0.names
    }

    /// Adds the names the error is about.
    #[must_use]
    pub fn with_names(mut self, names: Vec<String>) -> Self {
        self.0.names = names;
        self
    }

    /// The parameters that the op took, by their names in the whole model; an inner op that named some stays the one.
    #[must_use]
    pub(crate) fn with_parameters(self, parameters: impl FnOnce() -> Vec<(String, String)>) -> Self {
        self.involve(parameters, true)
    }

    /// The same by names within a layer, for models that no tape watches: [`Error::in_layer`] puts the layer's own before them.
    #[must_use]
    pub(crate) fn with_own_parameters(self, parameters: impl FnOnce() -> Vec<(String, String)>) -> Self {
        self.involve(parameters, false)
    }

    fn involve(mut self, parameters: impl FnOnce() -> Vec<(String, String)>, whole: bool) -> Self {
        if self.0.involved.parameters.is_empty() && self.0.names.is_empty() {
            let parameters = parameters();
            self.0.names = parameters.iter().map(|(name, _)| name.clone()).collect();
            self.0.involved.whole = whole && !parameters.is_empty();
            self.0.involved.parameters = parameters;
        }
        self
    }

    /// It happened in the part of this name: a position in a list of layers, a field of a layer.
    #[must_use]
    pub(crate) fn in_layer(mut self, part: impl fmt::Display) -> Self {
        let involved = &mut self.0.involved;
        if !involved.whole {
            let prefix = |name: &str| if name.is_empty() { part.to_string() } else { format!("{part}.{name}") };
            involved.path = prefix(&involved.path);
            if !involved.parameters.is_empty() {
                involved.parameters.iter_mut().for_each(|(name, _)| *name = prefix(name));
                self.0.names = involved.parameters.iter().map(|(name, _)| name.clone()).collect();
            }
        }
        self
    }

    /// The message and its causes alone, for a list of several: without op and line.
    pub(crate) fn why(&self) -> String {
        self.0.source.as_ref().map_or_else(|| self.0.message.clone(), |source| format!("{}: {source}", self.0.message))
    }

    /// The error of another library that this one reports (`std::io::Error`, for instance): to `downcast_ref` by.
    ///
    /// ```
    /// let e = cotangent::io::read_file("/no/such/file", 100).unwrap_err();
    /// let cause = e.underlying().and_then(|e| e.downcast_ref::<std::io::Error>());
    /// assert_eq!(cause.map(std::io::Error::kind), Some(std::io::ErrorKind::NotFound));
    /// ```
    pub fn underlying(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.0.source.as_deref()?;
        match source.downcast_ref::<Error>() {
            Some(ours) => ours.underlying(),
            None => Some(source),
        }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// Says what the message is about: `FILE: message`.
    #[must_use]
    pub(crate) fn about(mut self, what: impl fmt::Display) -> Self {
        self.0.message = format!("{what}: {}", self.0.message);
        self
    }

    /// Names the op and the caller's line, unless an inner op has already done so.
    #[must_use]
    pub fn in_op(mut self, op: &'static str, at: &'static Location<'static>) -> Self {
        if self.0.op.is_none() {
            self.0.op = Some(op);
        }
        if self.0.at.is_none() {
            self.0.at = Some(at);
        }
        self
    }

    /// Replaces the line: the caller of the outer op needs their own line, not that of the part inside that refused.
    #[must_use]
    pub(crate) fn called_at(mut self, at: &'static Location<'static>) -> Self {
        self.0.at = Some(at);
        self
    }

    /// Says the operands' shapes where a shape does not fit and the message names none of them.
    #[must_use]
    pub(crate) fn with_shapes(mut self, shapes: impl Iterator<Item: fmt::Display> + Clone) -> Self {
        const SHOWN: usize = 4;
        if self.is_shape() && self.0.op.is_none() && !shapes.clone().any(|s| self.0.message.contains(&s.to_string())) {
            let list: Vec<String> = shapes.clone().take(SHOWN).map(|s| s.to_string()).collect();
            let more = if shapes.count() > SHOWN { ", …" } else { "" };
            match list.as_slice() {
                [] => {}
                [one] => self.0.message.push_str(&format!("; the operand is {one}")),
                _ => self.0.message.push_str(&format!("; the operands are {}{more}", list.join(", "))),
            }
        }
        self
    }

    /// It happened in the derivative of an op: the user knows that op by its name and line. The part of the derivative that refused
    /// is named, too, unless it is a kernel of this op's derivative.
    #[must_use]
    pub(crate) fn in_derivative(mut self, of: &'static str, at: &'static Location<'static>) -> Self {
        const HERE: &str = "in the derivative: ";
        let of = of.trim_end_matches("_vjp");
        if !self.0.message.starts_with(HERE) {
            let part = self.0.op.filter(|part| *part != of && !part.ends_with("_vjp")).map(|part| format!("{part}: "));
            self.0.message = format!("{HERE}{}{}", part.unwrap_or_default(), self.0.message);
        }
        self.rename_op(of).called_at(at)
    }

    /// Replaces the op's name (a composite reports its own name, not that of the part which refused).
    #[must_use]
    pub(crate) fn rename_op(mut self, op: &'static str) -> Self {
        self.0.op = Some(op);
        self
    }
}

impl Error {
    /// Op and message without a line, for a text that becomes a part of another message, which has its own.
    pub(crate) fn text(&self) -> String {
        struct Text<'a>(&'a Error);
        impl fmt::Display for Text<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.show(f, false)
            }
        }
        Text(self).to_string()
    }

    fn show(&self, f: &mut fmt::Formatter<'_>, with_line: bool) -> fmt::Result {
        if let Some(op) = self.0.op {
            write!(f, "{op}: ")?;
        }
        f.write_str(&self.0.message)?;
        if self.is_internal() {
            f.write_str(" (a fault of cotangent itself: please report it)")?;
        }
        let involved = &self.0.involved;
        match involved.parameters.as_slice() {
            [] if involved.path.is_empty() => {}
            [] => write!(f, "; in layer {}", involved.path)?,
            [(name, what)] => write!(f, "; with the parameter `{name}` {what}")?,
            all => {
                let list: Vec<String> = all.iter().map(|(name, what)| format!("`{name}` {what}")).collect();
                write!(f, "; with the parameters {}", list.join(", "))?;
            }
        }
        let at = self.0.at.filter(|_| with_line);
        if let Some(at) = at {
            write!(f, " (at {}:{})", at.file(), at.line())?;
        }
        // One line is reported: that of the outermost caller that knows one.
        match self.0.source.as_ref().map(|source| (source, source.downcast_ref::<Error>())) {
            None => Ok(()),
            Some((_, Some(cause))) => {
                f.write_str(": ")?;
                cause.show(f, with_line && at.is_none())
            }
            Some((source, None)) => write!(f, ": {source}"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f, true)
    }
}

// `fn main() -> Result<()>` prints Debug: show the message, not the fields.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    /// What comes after the message: that shows its own cause, which a printed chain would repeat. [`Error::underlying`] is the cause itself.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref()?.source()
    }
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        Error::io("input or output failed, outside of this crate: name the file yourself, or read it by io::read_file, which does")
            .with_source(e)
    }
}

/// `return Err(Error::kind(format!(…)))`.
macro_rules! bail {
    ($kind:ident, $($arg:tt)*) => {
        return Err($crate::Error::$kind(format!($($arg)*)))
    };
}
pub(crate) use bail;
