//! Files on disk: that they are there, and that what they name is.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use tempfile::TempDir;

use super::{super::*, said};

/// Writes a node file, and beside it a program, a file that is none, and a directory.
fn tree(text: &str) -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().expect("a directory");
    let program = place.path().join("program");
    fs::write(&program, "").expect("the directory is ours");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
        .expect("the directory is ours");
    fs::write(place.path().join("data"), "").expect("the directory is ours");
    let file = place.path().join("node.toml");
    fs::write(&file, text).expect("the directory is ours");
    (place, file)
}

#[test]
fn what_is_named_must_be_there_to_start_and_need_not_to_go_on() {
    let (place, file) = tree(
        r#"
service.a = { executable = "program" }
service.b = { executable = "./missing" }
service.c = { executable = "data" }
service.d = { executable = "." }
service.e = { executable = "program", directory = "gone" }
service.f = { executable = "program", directory = "data" }
service.g = { executable = "program/x" }
"#,
    );
    let at = place.path().display();
    let expected = [
        format!("3:28: there is no {at}/missing; build or install it, or correct the path"),
        format!("4:28: {at}/data is not executable; run `chmod +x` on it"),
        format!("5:28: {at} is not a file; name the program itself"),
        format!(
            "6:51: cannot use the directory {at}/gone: No such file or directory (os error 2); \
             create it, or correct the path"
        ),
        format!("7:51: {at}/data is not a directory; name a directory"),
        format!(
            "8:28: cannot look at {at}/program/x: Not a directory (os error 20); correct the path"
        ),
    ];
    let shorn = |faults: &[Fault]| -> Vec<String> {
        let mut faults = faults.to_vec();
        for fault in &mut faults {
            super::FILE.clone_into(&mut fault.file);
        }
        said(&faults)
    };
    let Err(NodeError::Wrong { faults }) = load(&file) else { panic!("it is taken") };
    assert_eq!(shorn(&faults), expected);
    let node = reload(&file).expect("it is right");
    assert_eq!(shorn(&node.warnings), expected);
    assert_eq!(node.services.len(), 7);
}

#[test]
fn a_file_with_all_it_names_is_taken() {
    let (place, file) = tree("[service.a]\nexecutable = 'program'\n");
    let node = load(&file).expect("it is right");
    assert_eq!(node.services[0].executable, place.path().join("program"));
    assert_eq!(node.services[0].directory, place.path());
    assert_eq!(node.warnings, []);
}

#[test]
fn a_file_that_cannot_be_read_says_so() {
    let (place, file) = tree("");
    let gone = place.path().join("gone.toml");
    assert_eq!(
        load(&gone).expect_err("it is gone").to_string(),
        format!(
            "cannot read the node file {}: No such file or directory (os error 2); check the path \
             and its permissions",
            gone.display()
        )
    );
    let pipe = place.path().join("pipe.toml");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("the directory is ours");
    let error = load(&pipe).expect_err("it would be waited for").to_string();
    assert!(error.contains("it is a directory, a pipe or a device, and no file"), "{error}");
    fs::write(&file, vec![b'#'; 1 << 20]).expect("the directory is ours");
    assert_eq!(
        load(&file).expect("it is right"),
        Node { log_directory: "logs".into(), ..Node::default() }
    );
    fs::write(&file, vec![b'#'; (1 << 20) + 1]).expect("the directory is ours");
    assert_eq!(
        load(&file).expect_err("it is wrong").to_string(),
        format!("the node file {} is longer than 1048576 bytes; name another", file.display())
    );
    fs::write(&file, b"# caf\xe9\n").expect("the directory is ours");
    assert_eq!(
        load(&file).expect_err("it is wrong").to_string(),
        format!(
            "{}:1:6: this is not UTF-8; save the file in UTF-8\n  |\n1 | # caf\u{fffd}\n  |      ^",
            file.display()
        )
    );
}
