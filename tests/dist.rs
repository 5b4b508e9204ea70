//! The Debian package, in a Debian system made for it: what it installs, what its unit is worth, that an upgrade is
//! handed the running service, and that a purge leaves nothing. No systemd runs as process 1 there: the unit is read
//! by systemd's own tools, and what it would start is started by hand, as the service's account.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::debian::{Root, package, succeed};
use harness::ports::unused_port;
use harness::process::eventually;
use harness::proxy::target_directory;

/// What `systemd-analyze security` says of the unit, times ten: 0 is as closed as can be, 100 as open.
const EXPOSURE_MAX: u32 = 17;
const PROGRAM: &str = "/usr/bin/dcv-splice";
/// What dpkg, adduser, logrotate and the dynamic linker write besides.
const LEFT: [&str; 9] = [
    "/etc/group-",
    "/etc/gshadow-",
    "/etc/passwd-",
    "/etc/shadow-",
    "/run/adduser",
    "/var/cache/",
    "/var/lib/dpkg/",
    "/var/lib/logrotate/",
    "/var/log/dpkg.log",
];

#[test]
fn the_package_puts_each_file_in_its_place_and_makes_an_account() {
    let root = Root::new();
    let before = root.files();
    root.install(&package(1));
    let added = differences(&before, &root.files());
    for (path, about) in [
        ("/etc/dcv-splice", "d 750 root:dcv-splice"),
        ("/etc/dcv-splice/dcv-splice.toml", "f 644 root:root"),
        ("/etc/logrotate.d/dcv-splice", "f 644 root:root"),
        ("/usr/bin/dcv-splice", "f 755 root:root"),
        ("/usr/lib/systemd/system/dcv-splice.service", "f 644 root:root"),
        ("/etc/systemd/system/multi-user.target.wants/dcv-splice.service", "l 777 root:root"),
        ("/usr/share/bash-completion/completions/dcv-splice", "f 644 root:root"),
        ("/usr/share/fish/vendor_completions.d/dcv-splice.fish", "f 644 root:root"),
        ("/usr/share/zsh/vendor-completions/_dcv-splice", "f 644 root:root"),
        ("/var/log/dcv-splice", "d 750 dcv-splice:dcv-splice"),
    ] {
        assert_eq!(added.get(path).map(String::as_str), Some(about), "{path} in {added:#?}");
    }
    let account = root.run("getent passwd dcv-splice; id --groups --name dcv-splice");
    assert!(account.contains(":/nonexistent:/usr/sbin/nologin\ndcv-splice\n"), "{account}");
    root.run("dpkg --verify dcv-splice && test \"$(dcv-splice --version)\" = 'dcv-splice 0.1.0'");
}

#[test]
fn the_package_has_sums_of_its_files_and_documents_that_policy_wants() {
    let package = package(1);
    let folder = tempfile::tempdir().expect("a folder");
    succeed(Command::new("dpkg-deb").arg("--raw-extract").arg(&package).arg(folder.path()));
    let inside = |script: &str| {
        let done = succeed(Command::new("sh").args(["-euc", script]).current_dir(folder.path()));
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    // Every file but conffiles, and each with its sum.
    inside("md5sum --check --quiet --strict DEBIAN/md5sums");
    let summed = inside("cut -c 35- DEBIAN/md5sums | LC_ALL=C sort");
    let files = inside("find usr lib -type f | LC_ALL=C sort");
    assert_eq!(summed, files);
    let documents = "usr/share/doc/dcv-splice";
    for document in ["changelog.gz", "changelog.Debian.gz", "operations.md.gz", "THIRD-PARTY.gz"] {
        inside(&format!("gzip --test {documents}/{document}"));
    }
    assert!(inside(&format!("zcat {documents}/operations.md.gz")).starts_with("# Operating dcv-splice"));
    let notice = inside(&format!("zcat {documents}/THIRD-PARTY.gz"));
    assert!(notice.contains("\nrustls 0.") && notice.contains("Permission is hereby granted"));
    assert!(inside(&format!("cat {documents}/copyright")).contains("THIRD-PARTY.gz"));
    // Long texts are compressed, and nothing there can be run (Debian Policy 12.3).
    let wrong = inside(&format!(
        "find {documents} -type f '(' -perm /111 -o -size +8 -not -name '*.gz' -not -name copyright ')'"
    ));
    assert_eq!(wrong, "");
}

#[test]
fn a_package_of_the_tests_is_not_left_among_those_that_are_passed_on() {
    // A revision that nobody else makes.
    let made = package(990);
    let name = made.file_name().expect("a package has a name");
    let folders = fs::read_dir(target_directory()).expect("it was built").flatten();
    let dists = folders.filter(|entry| entry.file_name().to_string_lossy().starts_with("dist"));
    let left: Vec<_> = dists.map(|folder| folder.path().join(name)).filter(|path| path.exists()).collect();
    assert!(made.exists() && left.is_empty(), "{left:?}");
}

#[test]
fn the_configuration_that_is_shipped_can_be_served() {
    let root = Root::new();
    root.install(&package(1));
    root.run("dcv-splice check --config /etc/dcv-splice/dcv-splice.toml");
}

#[test]
fn the_unit_is_understood_and_stays_as_closed_as_it_was() {
    let root = Root::new();
    root.install(&package(1));
    let complaints = root.run("systemd-analyze verify --man=no dcv-splice.service 2>&1");
    assert_eq!(complaints, "");
    let rated = format!("--offline=true --threshold={EXPOSURE_MAX} dcv-splice.service");
    root.run(&format!("systemd-analyze security {rated} >/tmp/rated || {{ cat /tmp/rated; exit 1; }}"));
}

#[test]
fn the_manual_and_the_completions_know_the_flags() {
    let root = Root::new();
    root.install(&package(1));
    let manual =
        root.run("zcat /usr/share/man/man1/dcv-splice.1.gz /usr/share/man/man1/dcv-splice-check.1.gz");
    assert_eq!(manual.matches(r"\fB\-\-agents\fR \fI<CIDR>\fR").count(), 2, "{manual}");
    let completed = root.run(
        "bash -euc '. /usr/share/bash-completion/completions/dcv-splice; COMP_WORDS=(dcv-splice --admi); COMP_CWORD=1
         _dcv__splice dcv-splice --admi dcv-splice; echo \"${COMPREPLY[@]}\"'",
    );
    assert_eq!(completed, "--admin\n");
    for script in [
        "bash-completion/completions/dcv-splice",
        "fish/vendor_completions.d/dcv-splice.fish",
        "zsh/vendor-completions/_dcv-splice",
    ] {
        let text = fs::read_to_string(root.file(&format!("/usr/share/{script}"))).expect("it was installed");
        assert!(text.contains("access-log") && text.contains("upgrade"), "{script}");
        assert!(!text.contains("helper"), "{script} offers what is the program's own");
    }
}

#[test]
fn an_upgrade_takes_over_a_rotation_starts_a_new_log_and_a_purge_leaves_nothing() {
    let root = Root::new();
    let before = root.files();
    let accounts = root.run("cat /etc/passwd /etc/group");
    root.install(&package(1));
    let port = configure(&root);
    let service = root.serve();
    answered(&root, port);
    let log = root.file("/var/log/dcv-splice/access.log");
    // An empty log would stay where it is.
    eventually("the log has a line", || fs::metadata(&log).is_ok_and(|log| log.len() > 0).then_some(()));
    root.run("logrotate --force /etc/logrotate.d/dcv-splice");
    answered(&root, port);
    eventually("the new log has a line", || {
        fs::read_to_string(&log).ok().filter(|text| text.contains("/health"))
    });
    assert!(log.with_extension("log.1").exists());

    let said = root.install(&package(2));
    assert!(root.run("dpkg-query --show dcv-splice").contains("-2"), "{said}");
    // With nothing to drain the one before ends by itself.
    eventually("the new one serves alone", || {
        let running = running(&root);
        (!running.is_empty() && running.iter().all(|program| *program == root.file(PROGRAM))).then_some(())
    });
    answered(&root, port);

    drop(service);
    root.run(
        "dpkg --remove dcv-splice && test -e /etc/dcv-splice/dcv-splice.toml && dpkg --purge dcv-splice",
    );
    assert_eq!(differences(&before, &root.files()), BTreeMap::new());
    assert_eq!(root.run("cat /etc/passwd /etc/group"), accounts);
}

#[test]
fn an_upgrade_that_fails_leaves_the_package_installed_and_the_old_one_serving() {
    let root = Root::new();
    root.install(&package(1));
    let port = configure(&root);
    let _service = root.serve();
    answered(&root, port);
    // The new one can't start by this; the one that runs has read it long ago.
    fs::write(root.file("/etc/dcv-splice/dcv-splice.toml"), "listen = 8443\n")
        .expect("the configuration is there");
    let said = root.install(&package(2));
    assert!(said.contains("goes on serving"), "{said}");
    let running = running(&root);
    assert!(!running.is_empty() && !running.contains(&root.file(PROGRAM)), "{running:?}");
    answered(&root, port);
}

#[test]
fn the_shell_scripts_have_no_known_mistakes() {
    let scripts = [
        "deploy/apply.sh",
        "deploy/deploy.sh",
        "packaging/deb/postinst",
        "packaging/deb/postrm",
        "packaging/deb/prerm",
    ];
    succeed(Command::new("shellcheck").args(scripts).current_dir(repository()));
}

#[test]
fn the_image_runs_what_the_unit_runs_and_its_build_is_no_nonsense_to_a_shell() {
    let image = fs::read_to_string(repository().join("packaging/Dockerfile")).expect("it is there");
    let (_, last_stage) = image.split_once("FROM scratch\n").expect("the image holds nothing of another's");
    let exec = |instruction: &str| -> Vec<String> {
        let words = last_stage.lines().find_map(|line| line.strip_prefix(instruction));
        serde_json::from_str(words.expect(instruction))
            .expect("there is no shell to understand anything else")
    };
    let unit = fs::read_to_string(repository().join("packaging/dcv-splice.service")).expect("it is there");
    let started = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("it starts something");
    assert_eq!([exec("ENTRYPOINT "), exec("CMD ")].concat().join(" "), started);
    let joined = image.replace("\\\n", "");
    let build = joined.lines().find_map(|line| line.strip_prefix("RUN ")).expect("it is built");
    succeed(Command::new("sh").args(["-n", "-c", build]));
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Makes it listen on a port that is free.
fn configure(root: &Root) -> u16 {
    let port = unused_port();
    let file = root.file("/etc/dcv-splice/dcv-splice.toml");
    let shipped = fs::read_to_string(&file).expect("the configuration was installed");
    let own = [
        ("listen", format!("[\"127.0.0.1:{port}\"]")),
        ("admin", "\"off\"".to_owned()),
        ("access-log", "\"/var/log/dcv-splice/access.log\"".to_owned()),
    ];
    let is_own = |line: &&str| own.iter().any(|(key, _)| line.starts_with(&format!("{key} = ")));
    let kept = shipped.lines().filter(|line| !is_own(line)).map(str::to_owned);
    let lines: Vec<_> = own.iter().map(|(key, value)| format!("{key} = {value}")).chain(kept).collect();
    fs::write(file, lines.join("\n")).expect("the configuration can be written");
    port
}

fn answered(root: &Root, port: u16) {
    let ask = format!("curl --silent --insecure --max-time 5 https://127.0.0.1:{port}/health");
    eventually("the service answers", || {
        let answer = root.script(&ask).output().expect("unshare starts").stdout;
        answer.starts_with(b"DCV Proxy OK").then_some(())
    });
}

/// The files that run, of all that were started as the system's program: one that was replaced has another name now.
fn running(root: &Root) -> Vec<PathBuf> {
    let started_from = |entry: fs::DirEntry| fs::read_link(entry.path().join("exe")).ok();
    let all = fs::read_dir("/proc").expect("there is /proc").flatten().filter_map(started_from);
    let program = root.file(PROGRAM);
    all.filter(|file| file.to_string_lossy().starts_with(&*program.to_string_lossy())).collect()
}

/// What `after` has more or otherwise, or lacks.
fn differences(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let differs = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
    let meant = differs.filter(|name| !LEFT.iter().any(|left| name.starts_with(left)));
    meant.map(|name| (name.clone(), after.get(name).map_or("gone", String::as_str).to_owned())).collect()
}
