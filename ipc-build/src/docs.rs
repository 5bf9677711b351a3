//! Comments of a `.proto` file as documentation: plain text, and some for what has none.

use std::collections::HashSet;

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet, SourceCodeInfo,
    source_code_info::Location,
};

// Field numbers of descriptor.proto, of which the paths of locations are made.
const FILE_MESSAGES: i32 = 4;
const FILE_ENUMS: i32 = 5;
const FILE_SERVICES: i32 = 6;
const MESSAGE_FIELDS: i32 = 2;
const MESSAGE_NESTED: i32 = 3;
const MESSAGE_ENUMS: i32 = 4;
const MESSAGE_ONEOFS: i32 = 8;
const ENUM_VALUES: i32 = 2;
const SERVICE_METHODS: i32 = 2;

/// Makes text of all comments, and gives everything without one a comment that names it.
pub(crate) fn fill(set: &mut FileDescriptorSet) {
    for file in &mut set.file {
        let mut wanted = Vec::new();
        gather(file, &mut wanted);
        let info = file.source_code_info.get_or_insert_default();
        for location in &mut info.location {
            for text in [&mut location.leading_comments, &mut location.trailing_comments] {
                *text = text.take().map(|text| plain(&text));
            }
        }
        add(info, wanted);
    }
}

/// Has what looks like a tag of HTML shown as it was written, but for code.
fn plain(comment: &str) -> String {
    let parts = comment.split('`').enumerate();
    let escaped = parts.map(|(index, part)| match index % 2 {
        0 => part.replace('<', "\\<"),
        _ => part.to_owned(),
    });
    escaped.collect::<Vec<_>>().join("`")
}

fn add(info: &mut SourceCodeInfo, wanted: Vec<(Vec<i32>, String)>) {
    let commented = |location: &Location| {
        location.leading_comments.is_some() || location.trailing_comments.is_some()
    };
    let known: HashSet<Vec<i32>> = info
        .location
        .iter()
        .filter(|location| commented(location))
        .map(|location| location.path.clone())
        .collect();
    for (path, text) in wanted.into_iter().filter(|(path, _)| !known.contains(path)) {
        // The first of a path is the one that is found.
        info.location.retain(|location| location.path != path);
        info.location.push(Location {
            path,
            span: vec![0, 0, 0],
            leading_comments: Some(format!(" {text}\n")),
            ..Location::default()
        });
    }
}

fn gather(file: &FileDescriptorProto, wanted: &mut Vec<(Vec<i32>, String)>) {
    for (index, message) in numbered(&file.message_type) {
        gather_message(&[FILE_MESSAGES, index], message, wanted);
    }
    for (index, enumeration) in numbered(&file.enum_type) {
        gather_enum(&[FILE_ENUMS, index], enumeration, wanted);
    }
    for (index, service) in numbered(&file.service) {
        let path = [FILE_SERVICES, index];
        wanted.push((path.to_vec(), format!("The service `{}`.", service.name())));
        for (index, method) in numbered(&service.method) {
            wanted.push((below(&path, SERVICE_METHODS, index), call(method.name())));
        }
    }
}

fn call(name: &str) -> String {
    format!("Calls the method `{name}`.")
}

fn gather_message(path: &[i32], message: &DescriptorProto, wanted: &mut Vec<(Vec<i32>, String)>) {
    let name = message.name();
    wanted.push((path.to_vec(), format!("The message `{name}`.")));
    for (index, field) in numbered(&message.field) {
        let text = format!("The field `{}`.", field.name());
        wanted.push((below(path, MESSAGE_FIELDS, index), text));
    }
    for (index, oneof) in numbered(&message.oneof_decl) {
        let text = format!("One of the fields of `{}`.", oneof.name());
        wanted.push((below(path, MESSAGE_ONEOFS, index), text));
    }
    for (index, nested) in numbered(&message.nested_type) {
        gather_message(&below(path, MESSAGE_NESTED, index), nested, wanted);
    }
    for (index, enumeration) in numbered(&message.enum_type) {
        gather_enum(&below(path, MESSAGE_ENUMS, index), enumeration, wanted);
    }
}

fn gather_enum(
    path: &[i32],
    enumeration: &EnumDescriptorProto,
    wanted: &mut Vec<(Vec<i32>, String)>,
) {
    wanted.push((path.to_vec(), format!("The values of `{}`.", enumeration.name())));
    for (index, value) in numbered(&enumeration.value) {
        let text = format!("The value `{}`.", value.name());
        wanted.push((below(path, ENUM_VALUES, index), text));
    }
}

fn below(path: &[i32], field: i32, index: i32) -> Vec<i32> {
    [path, &[field, index]].concat()
}

fn numbered<T>(items: &[T]) -> impl Iterator<Item = (i32, &T)> {
    (0..).zip(items)
}
