use expect_test::expect;
use kpng_linux::sysctl;

use crate::in_namespace;

const FORWARD: &str = "net/ipv4/ip_forward";

#[test]
fn a_parameter_is_set_in_the_namespace_only() {
    let outside = sysctl::get(FORWARD).unwrap();
    in_namespace(|| {
        for value in ["1", "0", "1"] {
            sysctl::set(FORWARD, value).unwrap();
            assert_eq!(sysctl::get(FORWARD).unwrap(), value);
        }
        assert!(!sysctl::set_if_needed(FORWARD, "1").unwrap());
        assert!(sysctl::set_if_needed(FORWARD, "0").unwrap());
        assert_eq!(sysctl::get(FORWARD).unwrap(), "0");
    });
    assert_eq!(sysctl::get(FORWARD).unwrap(), outside);
}

#[test]
fn errors_say_what_to_do() {
    let missing = sysctl::get("net/ipv4/no_such_thing").unwrap_err();
    expect![
        "cannot read /proc/sys/net/ipv4/no_such_thing: this kernel does not have it, or the \
         module that provides it is not loaded"
    ]
    .assert_eq(&missing.to_string());
    in_namespace(|| {
        let refused = sysctl::set(FORWARD, "many").unwrap_err();
        expect![
            "cannot write \"many\" to /proc/sys/net/ipv4/ip_forward: the kernel does not accept \
             this value"
        ]
        .assert_eq(&refused.to_string());
    });
}
