//! What is made of a `service`.

use prost_build::{Comments, Method, Service, ServiceGenerator};
use prost_types::method_options::IdempotencyLevel;

use crate::methods::{method_id, path};

pub(crate) struct Generator {
    pub(crate) tokio: bool,
}

impl ServiceGenerator for Generator {
    fn generate(&mut self, service: Service, out: &mut String) {
        out.push_str(&constants(&service));
        let flavours = [Some(Flavour::Threads), self.tokio.then_some(Flavour::Tasks)];
        for flavour in flavours.into_iter().flatten() {
            out.push_str(&flavour.interface(&service));
            out.push_str(&flavour.server(&service));
            out.push_str(&flavour.client(&service));
        }
    }
}

/// The methods, in a module of their own: they may be named as anything is.
fn constants(service: &Service) -> String {
    let (module, name) = (module(service), &service.name);
    let each = each(service, |method| {
        let path = path(service, method);
        let (constant, id) = (constant(method), literal(method_id(&path)));
        let idempotency = idempotency(method);
        format!(
            "    /// `{path}`
    pub const {constant}: ::ipc::rpc::Method = ::ipc::rpc::Method {{
        id: {id},
        path: \"{path}\",
        idempotency: ::ipc::civil::Idempotency::{idempotency},
    }};

"
        )
    });
    let list: Vec<String> = service.methods.iter().map(constant).collect();
    let list = list.join(", ");
    format!(
        "/// The methods of [`{name}`].
pub mod {module} {{
{each}    /// All of them.
    #[must_use]
    pub const fn all() -> &'static [::ipc::rpc::Method] {{
        &[{list}]
    }}
}}

"
    )
}

/// What every client has, beside the methods of its service.
const OWN: [&str; 2] = ["new", "with_retry"];

/// For whom it is made: a service and its callers may each be of either.
#[derive(Clone, Copy)]
enum Flavour {
    Threads,
    Tasks,
}

impl Flavour {
    fn prefix(self) -> &'static str {
        match self {
            Flavour::Threads => "",
            Flavour::Tasks => "Async",
        }
    }

    /// The trait.
    fn interface(self, service: &Service) -> String {
        let (prefix, name) = (self.prefix(), &service.name);
        let comments_above = comments(&service.comments, "");
        let each = each(service, |method| {
            let Method { name, input_type, output_type, .. } = method;
            let comments = comments(&method.comments, "    ");
            let answer = match (self, method.server_streaming) {
                (_, false) => output_type.clone(),
                (Flavour::Threads, true) => format!("::ipc::rpc::Stream<{output_type}>"),
                (Flavour::Tasks, true) => format!("::ipc::rpc::TaskStream<{output_type}>"),
            };
            let result = format!("::core::result::Result<{answer}, ::ipc::rpc::Fault>");
            let (reference, output) = match self {
                Flavour::Threads => ("&", result),
                Flavour::Tasks => (
                    "",
                    format!(
                        "impl ::core::future::Future<Output = {result}> + ::core::marker::Send"
                    ),
                ),
            };
            format!(
                "{comments}    ///
    /// # Errors
    /// What the caller is to get.
    fn {name}(
        &self,
        context: {reference}::ipc::rpc::Context,
        request: {input_type},
    ) -> {output};

"
            )
        });
        format!(
            "{comments_above}pub trait {prefix}{name}: \
             ::core::marker::Send + ::core::marker::Sync + 'static {{
{each}}}

"
        )
    }

    /// What has an implementation of it carry out requests.
    fn server(self, service: &Service) -> String {
        let name = format!("{}{}", self.prefix(), service.name);
        let module = module(service);
        let (held, made) = match self {
            Flavour::Threads => ("T", "service"),
            Flavour::Tasks => ("::std::sync::Arc<T>", "::std::sync::Arc::new(service)"),
        };
        let (implements, signature) = match self {
            Flavour::Threads => (
                "Dispatch",
                "context: &::ipc::rpc::Context,
        body: &[u8],
        answer: &mut ::ipc::rpc::Answer,
    ) -> ::core::option::Option<::core::result::Result<(), ::ipc::rpc::Fault>>",
            ),
            Flavour::Tasks => (
                "AsyncDispatch",
                "context: ::ipc::rpc::Context,
        body: &[u8],
    ) -> ::core::option::Option<::ipc::rpc::Serving>",
            ),
        };
        let arms = each(service, |method| self.arm(service, method));
        format!(
            "/// Serves an implementation of [`{name}`].
#[derive(Clone, Debug)]
pub struct {name}Server<T>({held});

impl<T: {name}> {name}Server<T> {{
    /// Serves this one.
    #[must_use]
    pub fn new(service: T) -> Self {{
        Self({made})
    }}
}}

impl<T: {name}> ::ipc::rpc::{implements} for {name}Server<T> {{
    fn methods(&self) -> &'static [::ipc::rpc::Method] {{
        {module}::all()
    }}

    fn dispatch(
        &self,
        method: u32,
        {signature} {{
        ::core::option::Option::Some(match method {{
{arms}            _ => return ::core::option::Option::None,
        }})
    }}
}}

"
        )
    }

    fn arm(self, service: &Service, method: &Method) -> String {
        let id = literal(method_id(&path(service, method)));
        let Method { name, .. } = method;
        let (function, arguments) = match (self, method.server_streaming) {
            (Flavour::Threads, false) => ("unary", "body, answer"),
            (Flavour::Threads, true) => ("streaming", "body, answer"),
            (Flavour::Tasks, false) => ("serve_unary", "body"),
            (Flavour::Tasks, true) => ("serve_stream", "body"),
        };
        let handled = match self {
            Flavour::Threads => format!(" self.0.{name}(context, request) "),
            Flavour::Tasks => format!(
                "
                let service = ::std::sync::Arc::clone(&self.0);
                async move {{ service.{name}(context, request).await }}
            "
            ),
        };
        format!(
            "            {id} => ::ipc::rpc::{function}({arguments}, |request| {{{handled}}}),
"
        )
    }

    /// What calls it.
    fn client(self, service: &Service) -> String {
        let (prefix, name) = (self.prefix(), &service.name);
        let (parameters, arguments) = match self {
            Flavour::Threads => ("client: ::ipc::Client", "client"),
            Flavour::Tasks => ("server: ::ipc::Server, client: ::ipc::Client", "server, client"),
        };
        let calls = each(service, |method| self.call(service, method));
        format!(
            "/// Calls a service [`{prefix}{name}`].
#[derive(Clone, Debug)]
pub struct {prefix}{name}Client(::ipc::rpc::{prefix}Caller);

impl {prefix}{name}Client {{
    /// Calls by this client, once each.
    #[must_use]
    pub fn new({parameters}) -> Self {{
        Self(::ipc::rpc::{prefix}Caller::new({arguments}))
    }}

    /// Calls again what failed, where that can help and is safe.
    #[must_use]
    pub fn with_retry(self, config: ::ipc::civil::RetryConfig) -> Self {{
        Self(self.0.with_retry(config))
    }}

{calls}}}

"
        )
    }

    fn call(self, service: &Service, method: &Method) -> String {
        let Method { input_type, output_type, .. } = method;
        let name = called(&method.name);
        let comments = comments(&method.comments, "    ");
        let (asynchronous, wait) = match self {
            Flavour::Threads => ("", ""),
            Flavour::Tasks => ("async ", ".await"),
        };
        let prefix = self.prefix();
        let (function, output) = if method.server_streaming {
            ("stream", format!("::ipc::rpc::{prefix}Items<{output_type}>"))
        } else {
            ("unary", output_type.clone())
        };
        let (module, constant) = (module(service), constant(method));
        format!(
            "{comments}    ///
    /// # Errors
    /// [`RpcError`](::ipc::rpc::RpcError): no answer, an error as answer, or one without sense.
    pub {asynchronous}fn {name}(
        &self,
        request: &{input_type},
        options: impl ::core::convert::Into<::ipc::rpc::RpcOptions>,
    ) -> ::core::result::Result<{output}, ::ipc::rpc::RpcError> {{
        self.0.{function}({module}::{constant}, request, options){wait}
    }}

"
        )
    }
}

/// A client's name for a method: one like those that each client has gets a mark.
fn called(name: &str) -> String {
    if OWN.contains(&name) { format!("{name}_") } else { name.to_owned() }
}

fn each(service: &Service, write: impl FnMut(&Method) -> String) -> String {
    service.methods.iter().map(write).collect()
}

fn comments(comments: &Comments, indent: &str) -> String {
    let mut written = String::new();
    comments.append_with_indent(u8::from(!indent.is_empty()), &mut written);
    written
}

/// The module of a service's constants.
fn module(service: &Service) -> String {
    format!("{}_methods", snake(&service.proto_name))
}

fn constant(method: &Method) -> String {
    snake(&method.proto_name).to_uppercase()
}

/// `GetItem` to `get_item`. What prost makes of a name may be a raw identifier.
fn snake(name: &str) -> String {
    let mut out = String::new();
    let mut before = '_';
    for character in name.chars() {
        if character.is_uppercase() && before != '_' && !before.is_uppercase() {
            out.push('_');
        }
        out.extend(character.to_lowercase());
        before = character;
    }
    out
}

/// As clippy likes it.
fn literal(id: u32) -> String {
    format!("0x{:04X}_{:04X}", id >> 16, id & 0xFFFF)
}

fn idempotency(method: &Method) -> &'static str {
    match method.options.idempotency_level() {
        IdempotencyLevel::IdempotencyUnknown => "Unknown",
        IdempotencyLevel::NoSideEffects | IdempotencyLevel::Idempotent => "Idempotent",
    }
}
