//! The manifests for Kubernetes and EC2: they are what their readers take, and agree with the program and with themselves.
// An unwrap that fails is a failed test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use dcv_splice::config::{Command as ProxyCommand, CommandLine};
use harness::certificates::{Identity, KeyKind};
use harness::proxy;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Probe, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn packaging(file: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(file);
    fs::read_to_string(path).unwrap()
}

fn documents(text: &str) -> Vec<Value> {
    use serde::Deserialize;
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

/// The object of that kind, by Kubernetes' own types. What these do not know would be lost, and is an error.
fn object<T: DeserializeOwned + Serialize>(kind: &str) -> T {
    let all = documents(&packaging("kubernetes/dcv-splice.yaml"));
    let mut found = all.into_iter().filter(|document| document["kind"] == kind);
    let document = found.next().unwrap_or_else(|| panic!("a {kind}"));
    assert!(found.next().is_none(), "one {kind}");
    let object: T = serde_json::from_value(document.clone()).unwrap();
    assert_eq!(serde_json::to_value(&object).unwrap(), document, "{kind} has keys that there are not");
    object
}

fn container(deployment: &Deployment) -> Container {
    let pod = deployment.spec.clone().unwrap().template.spec.unwrap();
    assert_eq!(pod.containers.len(), 1);
    pod.containers[0].clone()
}

#[test]
fn pods_are_found_by_what_selects_them() {
    let deployment: Deployment = object("Deployment");
    let spec = deployment.spec.clone().unwrap();
    let labels = spec.template.metadata.clone().unwrap().labels.unwrap();
    let service: Service = object("Service");
    let budget: PodDisruptionBudget = object("PodDisruptionBudget");
    for selector in [
        spec.selector.match_labels.unwrap(),
        service.spec.clone().unwrap().selector.unwrap(),
        budget.spec.unwrap().selector.unwrap().match_labels.unwrap(),
    ] {
        assert!(selector.iter().all(|(key, value)| labels.get(key) == Some(value)), "{selector:?}");
    }
    assert!(spec.replicas.unwrap() > 1);
    let ports = container(&deployment).ports.unwrap();
    let port =
        |name: &str| ports.iter().find(|port| port.name.as_deref() == Some(name)).unwrap().container_port;
    assert_eq!((port("https"), port("admin")), (8443, 9443));
    let service = service.spec.unwrap();
    assert_eq!(service.external_traffic_policy.as_deref(), Some("Local"));
    let exposed: Vec<_> = service.ports.unwrap().into_iter().map(|port| port.target_port.unwrap()).collect();
    // The admin page is not among them.
    assert_eq!(exposed, [IntOrString::String("https".to_owned())]);
}

#[test]
fn a_pod_drains_before_it_stops_and_has_the_time_for_it() {
    let deployment: Deployment = object("Deployment");
    let pod = deployment.spec.clone().unwrap().template.spec.unwrap();
    let container = container(&deployment);
    let command = container.lifecycle.clone().unwrap().pre_stop.unwrap().exec.unwrap().command.unwrap();
    assert_eq!(command[0], "/usr/bin/dcv-splice");
    let Some(ProxyCommand::Drain(drain)) = CommandLine::try_parse_from(&command).unwrap().command else {
        panic!("{command:?}")
    };
    assert!(drain.proxy);
    // By its default it asks where the proxy listens.
    let control = format!("--control={}", drain.control.control.display());
    assert!(container.args.clone().unwrap().contains(&control), "{control}");
    let probe = |probe: Option<Probe>| {
        let get = probe.clone().unwrap().http_get.unwrap();
        assert_eq!(get.port, IntOrString::String("admin".to_owned()));
        (get.path.unwrap(), probe.unwrap())
    };
    let (path, ready) = probe(container.readiness_probe.clone());
    assert_eq!(path, "/health?ready");
    // It is seen while the hook waits.
    let seen = ready.period_seconds.unwrap() * ready.failure_threshold.unwrap();
    assert!(Duration::from_secs(u64::try_from(seen).unwrap()) < drain.wait);
    assert_eq!(probe(container.liveness_probe).0, "/health");
    let config: ConfigMap = object("ConfigMap");
    let drain_timeout = config.data.unwrap()["dcv-splice.toml"]
        .lines()
        .find_map(|line| line.strip_prefix("drain-timeout = \"")?.strip_suffix("s\"")?.parse().ok())
        .map(Duration::from_secs)
        .unwrap();
    let grace = Duration::from_secs(u64::try_from(pod.termination_grace_period_seconds.unwrap()).unwrap());
    assert!(drain.wait + drain_timeout < grace);
}

#[test]
fn a_pod_needs_no_privileges() {
    let deployment: Deployment = object("Deployment");
    let pod = deployment.spec.clone().unwrap().template.spec.unwrap();
    assert_eq!(pod.security_context.unwrap().run_as_non_root, Some(true));
    assert!(pod.host_network.is_none());
    let rights = container(&deployment).security_context.unwrap();
    let capabilities = rights.capabilities.unwrap();
    assert_eq!((capabilities.drop.unwrap(), capabilities.add), (vec!["ALL".to_owned()], None));
    assert_eq!(
        (rights.allow_privilege_escalation, rights.read_only_root_filesystem),
        (Some(false), Some(true))
    );
    assert!(rights.privileged.is_none());
}

/// With certificates of the test's, at paths of its own.
fn check(config: &str, agents: &str, folders: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display().to_string();
    let pair = Identity::self_signed(KeyKind::Ecdsa, &["localhost"]);
    let files = [
        ("proxy.crt", pair.cert_pem.clone()),
        ("proxy.key", pair.key_pem.clone()),
        ("tls.crt", pair.cert_pem),
        ("tls.key", pair.key_pem),
        ("cookie.key", "0123456789abcdef".repeat(8)),
        ("agents.toml", agents.to_owned()),
    ];
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let config =
        folders.iter().fold(config.to_owned(), |text, folder| text.replace(folder, &format!("{at}/")));
    fs::write(folder.path().join("c.toml"), config).unwrap();
    let flag = format!("--config={at}/c.toml");
    let output = Command::new(proxy::binary()).args(["check", &flag]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_configuration_of_the_pods_can_be_used() {
    let config: ConfigMap = object("ConfigMap");
    let data = config.data.unwrap();
    check(&data["dcv-splice.toml"], &data["agents.toml"], &["/etc/dcv-splice/", "/tls/", "/cookie/"]);
    let deployment: Deployment = object("Deployment");
    let pod = deployment.spec.clone().unwrap().template.spec.unwrap();
    let volumes: BTreeSet<_> = pod.volumes.unwrap().into_iter().map(|volume| volume.name).collect();
    let mounts: BTreeSet<_> =
        container(&deployment).volume_mounts.unwrap().into_iter().map(|mount| mount.name).collect();
    assert_eq!(volumes, mounts);
    CommandLine::try_parse_from(
        ["dcv-splice".to_owned()].into_iter().chain(container(&deployment).args.unwrap()),
    )
    .unwrap();
}

/// All that `Ref`, `Fn::GetAtt` and `Fn::Sub` name.
fn named(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match (&**key, value) {
                    ("Ref", Value::String(name)) => {
                        names.insert(name.clone());
                    }
                    ("Fn::GetAtt", Value::Array(path)) => {
                        names.insert(path[0].as_str().unwrap().to_owned());
                    }
                    ("Fn::Sub", Value::String(text)) => {
                        let parts =
                            text.split("${").skip(1).map(|part| part.split('}').next().unwrap().to_owned());
                        names.extend(parts);
                    }
                    _ => named(value, names),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| named(value, names)),
        _ => {}
    }
}

#[test]
fn the_stack_of_ec2_agrees_with_itself_and_with_the_program() {
    let stack = documents(&packaging("ec2/auto-scaling.yaml")).remove(0);
    let known: BTreeSet<_> = ["Parameters", "Resources"]
        .iter()
        .flat_map(|part| stack[part].as_object().unwrap().keys().cloned())
        .chain(["AWS::StackName".to_owned()])
        .collect();
    let mut names = BTreeSet::new();
    named(&stack, &mut names);
    assert!(names.is_subset(&known), "{:?}", names.difference(&known));
    let resources = &stack["Resources"];
    let properties = |name: &str| resources[name]["Properties"].clone();
    let targets = properties("Targets");
    assert_eq!(
        (&targets["HealthCheckPath"], &targets["HealthCheckPort"]),
        (&"/health?ready".into(), &"9443".into())
    );
    let attribute = |key: &str| {
        let all = targets["TargetGroupAttributes"].as_array().unwrap();
        all.iter().find(|it| it["Key"] == key).unwrap()["Value"].clone()
    };
    assert_eq!(attribute("proxy_protocol_v2.enabled"), "true");
    assert_eq!(attribute("preserve_client_ip.enabled"), "false");
    assert_eq!(attribute("target_health_state.unhealthy.connection_termination.enabled"), "false");
    let group = properties("ProxyGroup");
    let ports =
        group["SecurityGroupIngress"].as_array().unwrap().iter().map(|rule| rule["ToPort"].as_u64().unwrap());
    assert_eq!(ports.collect::<Vec<_>>(), [8443, 9443]);
    let hook = &properties("Proxies")["LifecycleHookSpecificationList"][0];
    let script = properties("Template")["LaunchTemplateData"]["UserData"]["Fn::Base64"]["Fn::Sub"].clone();
    let script = script.as_str().unwrap();
    assert!(
        script.contains(&format!("--lifecycle-hook-name {} ", hook["LifecycleHookName"].as_str().unwrap()))
    );
    let script =
        script.replace("${AgentNetworks}", "10.0.0.0/16").replace("${BalancerNetworks}", "10.1.0.0/16");
    let script = script.replace("${AWS::StackName}", "stack");
    let config = script.split("dcv-splice.toml <<'END'\n").nth(1).unwrap().split("\nEND\n").next().unwrap();
    check(config, "", &["/etc/dcv-splice/"]);
    let leave = script.split("dcv-splice-leave <<'END'\n").nth(1).unwrap().split("END\n").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("user-data", &*script), ("leave", leave)] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let mut shellcheck = Command::new("shellcheck");
    let checked = shellcheck.args(["user-data", "leave"]).current_dir(folder.path()).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}
