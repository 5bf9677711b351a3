//! Messages that are events: those with the option `(ipc.topic)`.

use std::{collections::BTreeSet, path::Path};

use prost_build::Config;
use protox::{
    Compiler,
    file::{ChainFileResolver, File, FileResolver, GoogleFileResolver, IncludeFileResolver},
    prost_reflect::MessageDescriptor,
};

use crate::BuildError;

/// The file that declares the option.
pub(crate) const FILE: &str = "ipc/event.proto";
const TEXT: &str = include_str!("../proto/ipc/event.proto");
/// The option's name.
const OPTION: &str = "ipc.topic";
/// Longest name of a topic.
const LONGEST: usize = 255;
/// Stands before a message's declaration until its implementation is written behind it.
const MARK: &str = "#[ipc_topic(";

/// Has the file that declares the option without its lying in any directory.
struct Own;

impl FileResolver for Own {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        if name == FILE {
            return File::from_source(FILE, TEXT);
        }
        Err(protox::Error::file_not_found(name))
    }
}

/// A compiler that finds files in these directories, and the option's.
pub(crate) fn compiler(includes: &[impl AsRef<Path>]) -> Compiler {
    let mut resolver = ChainFileResolver::new();
    for include in includes {
        resolver.add(IncludeFileResolver::new(include.as_ref().to_owned()));
    }
    resolver.add(Own);
    resolver.add(GoogleFileResolver::new());
    Compiler::with_file_resolver(resolver)
}

/// Marks what prost makes of the messages that are events.
///
/// # Errors
/// [`BuildError::Topic`] for a name that no topic has.
pub(crate) fn mark(compiler: &Compiler, config: &mut Config) -> Result<(), BuildError> {
    let pool = compiler.descriptor_pool();
    let Some(option) = pool.get_extension_by_name(OPTION) else { return Ok(()) };
    for message in pool.all_messages() {
        let options = message.options();
        if !options.has_extension(&option) {
            continue;
        }
        let value = options.get_extension(&option);
        let topic = value.as_str().unwrap_or_default();
        if topic.is_empty() || topic.len() > LONGEST || topic.chars().any(char::is_control) {
            return Err(wrong(&message, topic));
        }
        let name = message.full_name();
        config.type_attribute(format!(".{name}"), format!("{MARK}{name} {topic:?})]"));
    }
    Ok(())
}

fn wrong(message: &MessageDescriptor, topic: &str) -> BuildError {
    BuildError::Topic { message: message.full_name().to_owned(), topic: topic.to_owned() }
}

/// A message that is an event, between its declaration's first line and its last.
struct Declared<'a> {
    indent: &'a str,
    name: &'a str,
    topic: &'a str,
}

/// Writes the implementations behind the messages that were marked. So this need not know how prost
/// names a message, nor in which module it puts it.
pub(crate) fn implement(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    // Prost marks what lies in a message, too, and writes the message itself first.
    let (mut known, mut topic, mut declared) = (BTreeSet::new(), None, None);
    for line in code.lines() {
        let text = line.trim_start();
        let indent = &line[..line.len() - text.len()];
        if let Some(mark) = text.strip_prefix(MARK).and_then(|it| it.strip_suffix(")]")) {
            topic = mark.split_once(' ').filter(|(message, _)| known.insert(*message)).or(topic);
            continue;
        }
        out.push_str(line);
        out.push('\n');
        if let Some((_, topic)) = topic.take_if(|_| text.starts_with("pub ")) {
            let rest = text.strip_prefix("pub struct ").unwrap_or_default();
            let name = rest.split(|it: char| !it.is_alphanumeric() && it != '_').next();
            declared = name.map(|name| Declared { indent, name, topic });
        }
        let is_end = |it: &mut Declared<'_>| it.indent == indent && text.ends_with('}');
        if let Some(declared) = declared.take_if(is_end) {
            out.push_str(&declared.implementation());
        }
    }
    out
}

impl Declared<'_> {
    fn implementation(&self) -> String {
        let Declared { indent, name, topic } = self;
        let text = format!(
            "/// Is published in the topic `{}`.
impl ::ipc::bus::TypedEvent for {name} {{
    const TOPIC: &'static str = {topic};

    fn encode(&self, out: &mut ::std::vec::Vec<u8>) {{
        // A vector grows: there is always room.
        ::ipc::rpc::prost::Message::encode_raw(self, out);
    }}

    fn decode(bytes: &[u8]) -> ::core::option::Option<Self> {{
        ::ipc::rpc::prost::Message::decode(bytes).ok()
    }}
}}
",
            topic.trim_matches('"')
        );
        text.lines().fold(String::new(), |out, line| match line {
            "" => out + "\n",
            line => out + indent + line + "\n",
        })
    }
}
