//! The values of a node file, one by one: each of the type that its key takes, or a finding.

use std::{
    collections::BTreeSet,
    ops::Range,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    fault::{Finding, instead},
    quantity::{self, Wrong, quoted},
};

pub(super) type Span = Range<usize>;

/// A value and its place in the text.
pub(super) type Placed<'t> = &'t Spanned<DeValue<'t>>;

/// What is known while a file is read.
#[derive(Debug)]
pub(super) struct Reading {
    /// What relative paths begin at; absolute.
    pub(super) base: PathBuf,
    pub(super) faults: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
}

/// The value of a key.
#[derive(Clone, Copy)]
pub(super) struct Field<'t> {
    pub(super) key: &'t str,
    pub(super) value: Placed<'t>,
}

impl<'t> Field<'t> {
    pub(super) fn span(&self) -> Span {
        self.value.span()
    }

    fn get(&self) -> &'t DeValue<'t> {
        self.value.get_ref()
    }
}

impl Reading {
    pub(super) fn fault(&mut self, span: Span, what: String, hint: impl Into<String>) {
        self.faults.push(Finding { span, what, hint: hint.into() });
    }

    pub(super) fn warn(&mut self, span: Span, what: String, hint: impl Into<String>) {
        self.warnings.push(Finding { span, what, hint: hint.into() });
    }

    /// Reports a value of the wrong type.
    pub(super) fn mistyped(&mut self, field: Field<'_>, wanted: &str, hint: &str) {
        let found = kind(field.get());
        self.fault(field.span(), format!("{} takes {wanted}, not {found}", field.key), hint);
    }

    pub(super) fn text<'t>(&mut self, field: Field<'t>) -> Option<&'t str> {
        let DeValue::String(text) = field.get() else {
            self.mistyped(field, "a string", "put it in quotes");
            return None;
        };
        if text.contains('\0') {
            let what = format!("{} holds a NUL character", field.key);
            self.fault(field.span(), what, "no program could be given it: take it out");
            return None;
        }
        Some(text)
    }

    pub(super) fn string(&mut self, field: Field<'_>) -> Option<String> {
        self.text(field).map(str::to_owned)
    }

    /// Reads a whole number within bounds, which are included.
    pub(super) fn number(&mut self, field: Field<'_>, bounds: (u64, u64)) -> Option<u64> {
        let DeValue::Integer(integer) = field.get() else {
            self.mistyped(field, "a whole number", "write digits without quotes");
            return None;
        };
        let (least, most) = bounds;
        let value = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let value = value.filter(|value| (least..=most).contains(value));
        if value.is_none() {
            let what = format!("{} is {integer}", field.key);
            let hint = match most {
                u64::MAX => format!("it takes {least} or more"),
                _ => format!("it takes {least} to {most}"),
            };
            self.fault(field.span(), what, hint);
        }
        value
    }

    /// Reads a number within bounds, which are included.
    pub(super) fn real(&mut self, field: Field<'_>, bounds: (f64, f64)) -> Option<f64> {
        let written = match field.get() {
            DeValue::Integer(integer) if integer.radix() == 10 => integer.as_str(),
            DeValue::Float(float) => float.as_str(),
            _ => {
                self.mistyped(field, "a number", "write digits without quotes");
                return None;
            }
        };
        let (least, most) = bounds;
        let value = written.parse::<f64>().ok().filter(|value| (least..=most).contains(value));
        if value.is_none() {
            let what = format!("{} is {written}", field.key);
            self.fault(field.span(), what, format!("it takes {least} to {most}"));
        }
        value
    }

    /// Reads a duration of more than nothing.
    pub(super) fn duration(&mut self, field: Field<'_>) -> Option<Duration> {
        if let DeValue::Integer(integer) = field.get() {
            let hint = format!("give it a unit: \"{integer}s\" or \"{integer}ms\"");
            self.mistyped(field, "a duration", &hint);
            return None;
        }
        let text = self.text(field)?;
        self.right(field, quantity::duration(text))
    }

    /// Reads a size, or a whole number of bytes.
    pub(super) fn size(&mut self, field: Field<'_>, least: u64) -> Option<u64> {
        if let DeValue::Integer(_) = field.get() {
            return self.number(field, (least, u64::MAX));
        }
        let text = self.text(field)?;
        let size = self.right(field, quantity::size(text))?;
        if size < least {
            let what = format!("{} is {}", field.key, quoted(text));
            self.fault(field.span(), what, format!("it takes {least} bytes or more"));
            return None;
        }
        Some(size)
    }

    /// Reads numbers of CPUs: a text like `0-3,7`, or a list of numbers.
    pub(super) fn cpus(&mut self, field: Field<'_>) -> Option<Vec<usize>> {
        let DeValue::Array(items) = field.get() else {
            let text = self.text(field)?;
            return self.right(field, quantity::cpus(text));
        };
        let numbers = self.list(field, |reading, item| reading.number(item, (0, 1023)));
        if numbers.is_empty() && items.is_empty() {
            let what = format!("{} lists no CPU", field.key);
            self.fault(field.span(), what, "write some, or leave it out");
        }
        let numbers: BTreeSet<usize> = numbers.iter().map(|(number, _)| *number as usize).collect();
        Some(numbers.into_iter().collect())
    }

    /// Reads a path, from the directory of the file if it is relative.
    pub(super) fn path(&mut self, field: Field<'_>) -> Option<PathBuf> {
        let text = self.text(field)?;
        if text.is_empty() {
            let what = format!("{} is empty", field.key);
            self.fault(field.span(), what, "write a path; \".\" is the directory of this file");
            return None;
        }
        Some(self.resolve(text))
    }

    pub(super) fn resolve(&self, text: &str) -> PathBuf {
        let plain = |part: &Component<'_>| *part != Component::CurDir;
        self.base.join(text).components().filter(plain).collect()
    }

    /// Reads one of several words.
    pub(super) fn choice<T: Copy>(&mut self, field: Field<'_>, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(field)?;
        let chosen = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if chosen.is_none() {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let what = format!("{} cannot be {}", field.key, quoted(text));
            self.fault(field.span(), what, instead(text, &words, "it can be"));
        }
        chosen
    }

    /// Reads what is right in a list, each with its place.
    pub(super) fn list<'t, T>(
        &mut self,
        field: Field<'t>,
        mut read: impl FnMut(&mut Reading, Field<'t>) -> Option<T>,
    ) -> Vec<(T, Span)> {
        let DeValue::Array(items) = field.get() else {
            self.mistyped(field, "a list", "put it in brackets: [ ]");
            return Vec::new();
        };
        let mut list = Vec::with_capacity(items.len());
        for value in items {
            let item = Field { key: field.key, value };
            list.extend(read(self, item).map(|read| (read, item.span())));
        }
        list
    }

    fn right<T>(&mut self, field: Field<'_>, read: Result<T, Wrong>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(Wrong { what, hint }) => {
                self.fault(field.span(), format!("{}: {what}", field.key), hint);
                None
            }
        }
    }
}

/// A table whose keys are asked for one by one; what nobody asked for is reported.
pub(super) struct Table<'t> {
    entries: &'t DeTable<'t>,
    title: String,
    asked: Vec<&'static str>,
}

impl<'t> Table<'t> {
    /// Opens the whole document.
    pub(super) fn root(entries: &'t DeTable<'t>) -> Table<'t> {
        Table { entries, title: "a node file".to_owned(), asked: Vec::new() }
    }

    /// Opens the table that `field` is, which messages call `title`.
    pub(super) fn open(reading: &mut Reading, field: Field<'t>, title: String) -> Option<Self> {
        if let DeValue::Table(entries) = field.get() {
            return Some(Table { entries, title, asked: Vec::new() });
        }
        let hint = match title.strip_prefix('[') {
            Some(_) => format!("begin it with {title}"),
            None => format!("write {} = {{ ... }}", field.key),
        };
        reading.mistyped(field, "a table", &hint);
        None
    }

    /// Reads the value of `key`, if it is there and right.
    pub(super) fn read<T>(
        &mut self,
        reading: &mut Reading,
        key: &'static str,
        read: impl FnOnce(&mut Reading, Field<'t>) -> Option<T>,
    ) -> Option<T> {
        self.asked.push(key);
        let value = self.entries.get(key)?;
        read(reading, Field { key, value })
    }

    /// Reads a list; none is an empty one.
    pub(super) fn list<T>(
        &mut self,
        reading: &mut Reading,
        key: &'static str,
        read: impl FnMut(&mut Reading, Field<'t>) -> Option<T>,
    ) -> Vec<(T, Span)> {
        self.read(reading, key, |reading, field| Some(reading.list(field, read)))
            .unwrap_or_default()
    }

    /// Tells whether the key is written, rightly or not.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Returns where the key stands, if it is written.
    pub(super) fn place(&self, key: &str) -> Option<Span> {
        self.entries.get_key_value(key).map(|(key, _)| key.span())
    }

    /// Reports every key that was not asked for.
    pub(super) fn close(self, reading: &mut Reading) {
        for key in self.entries.keys() {
            let name: &str = key.get_ref();
            if !self.asked.contains(&name) {
                let otherwise = format!("{} takes", self.title);
                let hint = instead(name, &self.asked, &otherwise);
                reading.fault(key.span(), format!("unknown key {}", quoted(name)), hint);
            }
        }
    }
}

/// Returns the entries in the order of the file.
pub(super) fn in_order<'t>(entries: &'t DeTable<'t>) -> Vec<(Span, Field<'t>)> {
    let mut list: Vec<_> = entries
        .iter()
        .map(|(key, value)| (key.span(), Field { key: key.get_ref(), value }))
        .collect();
    list.sort_by_key(|(span, _)| span.start);
    list
}

/// Returns the directory that relative paths of the file begin at.
pub(super) fn directory_of(file: &Path) -> PathBuf {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    file.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
