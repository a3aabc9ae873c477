//! The workspace is tidy; and what is not is found.

use std::fs;

use expect_test::{Expect, expect};

use super::{NOTE, check, root};

#[test]
fn the_workspace_is_tidy() {
    let complaints = check(&root()).unwrap();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Writes files, each `PATH: TEXT`, and compares the complaints.
fn check_files(files: &[(&str, &str)], expected: &Expect) {
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    // What is looked for must not be found in here.
    let complaints = check(directory.path()).unwrap().join("\n").replace(NOTE, "NOTE");
    expected.assert_eq(&complaints);
}

#[test]
fn lines_are_checked() {
    let text = format!("//! A crate. \n\n// {NOTE}: more\n// {NOTE}(#12): more\n\tlet\t\n");
    check_files(
        &[("crates/kpng-core/Cargo.toml", ""), ("crates/kpng-core/src/lib.rs", &text)],
        &expect![[r#"
            crates/kpng-core/src/lib.rs:1: trailing space; remove it
            crates/kpng-core/src/lib.rs:3: NOTE without an issue; write NOTE(#123), or do it
            crates/kpng-core/src/lib.rs:5: trailing space; remove it"#]],
    );
}

#[test]
fn modules_have_comments_and_are_declared_and_short() {
    let long = format!("//! Long.\n{}", "fn f() {}\n".repeat(500));
    let tested = format!("//! Tested.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "// x\n".repeat(600));
    check_files(
        &[
            ("crates/kpng-core/Cargo.toml", ""),
            (
                "crates/kpng-core/src/lib.rs",
                "//! A crate.\nmod a;\npub(crate) mod long;\nmod tested;\n",
            ),
            ("crates/kpng-core/src/a.rs", "//! A module.\nmod b;\n"),
            ("crates/kpng-core/src/a/b.rs", "use std;\n"),
            ("crates/kpng-core/src/b.rs", "//! Lost.\n"),
            ("crates/kpng-core/src/long.rs", &long),
            ("crates/kpng-core/src/tested.rs", &tested),
            ("crates/kpng-core/tests/it.rs", "//! A test.\n#[path = \"it/part.rs\"]\nmod part;\n"),
            ("crates/kpng-core/tests/it/part.rs", "//! A part.\n"),
            ("crates/kpng-core/tests/it/lost.rs", "//! Lost.\n"),
            ("target/debug/build/generated.rs", "use std;\n"),
        ],
        &expect![[r#"
            crates/kpng-core/src/a/b.rs:1: no module comment; begin with `//! ` and what the module is
            crates/kpng-core/src/b.rs:1: no module declares this file; write `mod` where it belongs, or delete it
            crates/kpng-core/src/long.rs:501: more than 500 lines without tests; split it by ideas
            crates/kpng-core/tests/it/lost.rs:1: no module declares this file; write `mod` where it belongs, or delete it"#]],
    );
}

#[test]
fn crates_know_only_what_they_may() {
    check_files(
        &[
            (
                "crates/kpng-core/Cargo.toml",
                "[dependencies]\nipnet.workspace = true\nserde = \"1\"\n",
            ),
            (
                "crates/kpng-nft/Cargo.toml",
                "[dependencies]\nkpng-core.workspace = true\nkpng-kube = { path = \"../kpng-kube\" }\n\
                 [dependencies.tonic]\nversion = \"1\"\n\
                 [dev-dependencies]\nkpng-testkit.workspace = true\ntonic = \"1\"\n\
                 [target.'cfg(unix)'.dependencies]\nlibc = \"1\"\n",
            ),
            ("crates/kpng-new/Cargo.toml", ""),
            ("crates/kpng/Cargo.toml", "[dependencies]\nkpng-nft = \"1\"\nkpng-testkit = \"1\"\n"),
        ],
        &expect![[r#"
            crates/kpng-core/Cargo.toml:3: kpng-core depends on serde, which is none of ["ipnet", "tokio"]; move what needs it to where it may be
            crates/kpng-new/Cargo.toml:1: a crate without a rule; say in xtask/src/tidy/crates.rs what it may know
            crates/kpng-nft/Cargo.toml:10: kpng-nft depends on libc, which is other crates' business; move what needs it to where it may be
            crates/kpng-nft/Cargo.toml:3: kpng-nft depends on kpng-kube, which is none of ["kpng-core", "kpng-linux"]; move what needs it to where it may be
            crates/kpng-nft/Cargo.toml:4: kpng-nft depends on tonic, which is other crates' business; move what needs it to where it may be
            crates/kpng/Cargo.toml:3: kpng depends on kpng-testkit, which is for tests only; move what needs it to where it may be"#]],
    );
}

#[test]
fn names_in_the_kernel_are_documented() {
    check_files(
        &[
            ("crates/kpng-nft/Cargo.toml", ""),
            (
                "crates/kpng-nft/README.md",
                "# kpng-nft\n\n## Names\n\nTables: `kpng` in `ip` and `ip6`; `routes`, `gone`, \
                 `service-to-…`, `lost-to-…`.\n\n## Limits\n\n`other`\n",
            ),
            (
                "crates/kpng-nft/src/lib.rs",
                "//! A crate.\nmod names;\nfn f() { format!(\"{at}-to-{self}\"); \"service\" }\n",
            ),
            (
                "crates/kpng-nft/src/names.rs",
                "//! Names.\npub const TABLE: &str = \"kpng\";\nconst NEW: &str = \"new\";\n\
                 Self::Routes => \"routes\",\n",
            ),
        ],
        &expect![[r#"
            crates/kpng-nft/README.md: nothing is called gone; remove it from the list
            crates/kpng-nft/README.md: nothing is called lost-to-…; remove it from the list
            crates/kpng-nft/src/names.rs:3: new is not in crates/kpng-nft/README.md; list it there"#]],
    );
}
