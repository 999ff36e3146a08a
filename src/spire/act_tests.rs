use super::*;

fn domains(names: &[&str]) -> BTreeSet<TrustDomain> {
    names.iter().map(|name| TrustDomain::new(name).unwrap()).collect()
}

/// What stands, what is added and removed, and what comes of it.
type Case = (Names, Names, Names, Option<Names>);
type Names = &'static [&'static str];

#[test]
fn only_the_difference_is_changed() {
    let cases: [Case; 6] = [
        (&["b.example", "a.example"], &["c.example"], &[], Some(&["b.example", "a.example", "c.example"])),
        (&["b.example", "a.example"], &[], &["b.example"], Some(&["a.example"])),
        (&["a.example"], &["a.example"], &["b.example"], None),
        (&[], &[], &["a.example"], None),
        // What we cannot read is not ours to take away.
        (&["No Domain", "a.example"], &["b.example"], &["a.example"], Some(&["No Domain", "b.example"])),
        (&["spiffe://a.example"], &["a.example"], &[], None),
    ];
    for (stands, add, remove, expected) in cases {
        let stands: Vec<String> = stands.iter().map(|name| (*name).to_owned()).collect();
        let expected = expected.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(changed(&stands, &domains(add), &domains(remove)), expected, "{stands:?}");
    }
}
