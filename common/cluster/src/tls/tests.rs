//! Handshakes in memory, between identities of all kinds.

use std::path::PathBuf;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::{ClientConnection, ServerConnection};

use super::*;
use crate::authority::Authority;
use crate::bundle;
use crate::key::{self, ClusterKey, KeyRing};

/// A key file with these keys, of a directory that goes with it.
fn file(keys: &[&ClusterKey]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    let text: String = keys.iter().map(|key| format!("{}\n", *key.to_text())).collect();
    key::write_new(&path, &text).unwrap();
    (directory, path)
}

fn identity(keys: &[&ClusterKey], role: Role) -> Identity {
    let (_directory, path) = file(keys);
    Identity::of_key_file(&path, role).unwrap()
}

fn new_key() -> ClusterKey {
    ClusterKey::generate().unwrap()
}

/// What either side makes of a handshake between them: first the client, then the server.
fn shake(client: &Identity, server: &Identity) -> (Result<(), Distrust>, Result<Role, Distrust>) {
    shake_by(client.client().unwrap(), server)
}

fn shake_by(
    client: Arc<ClientConfig>,
    server: &Identity,
) -> (Result<(), Distrust>, Result<Role, Distrust>) {
    let host = "10.0.0.1".try_into().unwrap();
    let mut near = ClientConnection::new(client, host).unwrap();
    let mut far = ServerConnection::new(server.server().unwrap()).unwrap();
    let (mut near_ends, mut far_ends) = (Ok(()), Ok(()));
    for _ in 0..4 {
        let mut bytes = Vec::new();
        while near.wants_write() {
            near.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() && far_ends.is_ok() {
            far.read_tls(&mut rest).unwrap();
            far_ends = far.process_new_packets().map(drop).map_err(|e| Distrust::of(&e));
        }
        let mut bytes = Vec::new();
        while far.wants_write() {
            far.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() && near_ends.is_ok() {
            near.read_tls(&mut rest).unwrap();
            near_ends = near.process_new_packets().map(drop).map_err(|e| Distrust::of(&e));
        }
    }
    let role = far_ends.map(|()| {
        let certificates = far.peer_certificates().expect("the client is believed");
        server.peer_role(&certificates[0]).expect("it has a role")
    });
    (near_ends, role)
}

#[test]
fn members_of_one_cluster_believe_each_other() {
    let key = new_key();
    let (client, server) = (identity(&[&key], Role::Coordinator), identity(&[&key], Role::Worker));
    assert_eq!(shake(&client, &server), (Ok(()), Ok(Role::Coordinator)));
    assert_eq!(client.cluster(), Some(key.cluster()));
}

#[test]
fn another_key_is_named_on_both_sides() {
    let (client, server) =
        (identity(&[&new_key()], Role::Coordinator), identity(&[&new_key()], Role::Worker));
    assert_eq!(shake(&client, &server), (Err(Distrust::OtherKey), Err(Distrust::RefusesUs)));
}

#[test]
fn a_certificate_is_for_one_role() {
    let key = new_key();
    let (worker, coordinator) =
        (identity(&[&key], Role::Worker), identity(&[&key], Role::Coordinator));
    // A worker's certificate used by a client: the client learns of it after its handshake.
    let refused = (Err(Distrust::RefusesRole), Err(Distrust::OtherRole));
    assert_eq!(shake(&worker, &worker), refused);
    // A coordinator's certificate used by a server.
    let (client, _) = shake(&coordinator, &coordinator);
    assert_eq!(client, Err(Distrust::OtherRole));
}

#[test]
fn a_coordinator_that_serves_has_both_sides() {
    let key = new_key();
    let of = |role| identity(&[&key], role);
    let (user, service, worker) = (of(Role::Coordinator), of(Role::Service), of(Role::Worker));
    let dial = |client: &Identity, server: &Identity| {
        shake_by(client.client_of_service().unwrap(), server)
    };
    // Users dial it, and it dials workers.
    assert_eq!(dial(&user, &service), (Ok(()), Ok(Role::Coordinator)));
    assert_eq!(shake(&service, &worker), (Ok(()), Ok(Role::Coordinator)));
    // It is no worker, a worker is no coordinator, and neither is a user.
    assert_eq!(shake(&user, &service).0, Err(Distrust::OtherName));
    assert_eq!(dial(&user, &worker).0, Err(Distrust::OtherName));
    assert_eq!(dial(&user, &user).0, Err(Distrust::OtherRole));
    assert_eq!(dial(&worker, &service), (Err(Distrust::RefusesRole), Err(Distrust::OtherRole)));
}

#[test]
fn a_bundle_serves_and_does_nothing_else() {
    let key = new_key();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle");
    key::write_new(&path, &bundle::make(&KeyRing::of(key.clone())).unwrap()).unwrap();
    let server = Identity::of_key_file(&path, Role::Worker).unwrap();
    let client = identity(&[&key], Role::Coordinator);
    assert_eq!(shake(&client, &server), (Ok(()), Ok(Role::Coordinator)));
    assert_eq!(server.cluster(), Some(key.cluster()));
    let refused = Identity::of_key_file(&path, Role::Coordinator).unwrap_err();
    assert!(matches!(refused, IdentityError::WorkerOnly(_)));
    // Used as a client all the same, it is not believed.
    assert_eq!(shake(&server, &identity(&[&key], Role::Worker)).1, Err(Distrust::OtherRole));
}

#[test]
fn two_keys_are_believed_while_they_are_changed() {
    let (old, new) = (new_key(), new_key());
    let steps: [&[&ClusterKey]; 4] = [&[&old], &[&old, &new], &[&new, &old], &[&new]];
    for pair in steps.windows(2) {
        for (client, server) in [(pair[0], pair[1]), (pair[1], pair[0])] {
            let client = identity(client, Role::Coordinator);
            let server = identity(server, Role::Worker);
            assert_eq!(shake(&client, &server), (Ok(()), Ok(Role::Coordinator)));
        }
    }
    let client = identity(&[&old], Role::Coordinator);
    assert_eq!(shake(&client, &identity(&[&new, &old], Role::Worker)).0, Err(Distrust::OtherKey));
}

#[test]
fn a_certificate_of_no_role_has_none() {
    let key = new_key();
    let server = identity(&[&key], Role::Worker);
    let leaf = Authority::of(&key)
        .unwrap()
        .mint_for("somebody.example", vec![ExtendedKeyUsagePurpose::ClientAuth])
        .unwrap();
    assert_eq!(server.peer_role(leaf.certificate.der()), None);
    let other = Authority::of(&key).unwrap().mint(Role::Worker).unwrap();
    assert_eq!(server.peer_role(other.certificate.der()), Some(Role::Worker));
}

#[test]
fn certificates_made_elsewhere_are_checked_before_anybody_connects() {
    let directory = tempfile::tempdir().unwrap();
    let key = new_key();
    let authority = Authority::of(&key).unwrap();
    let save = |name: &str, text: &str| {
        let path = directory.path().join(name);
        key::write_new(&path, text).unwrap();
        path
    };
    let ca = save("ca", &authority.certificate().pem());
    let other = Authority::of(&new_key()).unwrap();
    let other_ca = save("other", &other.certificate().pem());
    let stranger = other.mint_for("anna", vec![ExtendedKeyUsagePurpose::ClientAuth]).unwrap();
    let stranger_file = save("stranger", &stranger.certificate.pem());
    let stranger_key = save("stranger-key", &stranger.key.serialize_pem());
    let server = authority
        .mint_for("worker.widemap.internal", vec![ExtendedKeyUsagePurpose::ServerAuth])
        .unwrap();
    let client = authority.mint_for("anna", vec![ExtendedKeyUsagePurpose::ClientAuth]).unwrap();
    let by_address =
        authority.mint_for("10.0.0.1", vec![ExtendedKeyUsagePurpose::ServerAuth]).unwrap();
    let both = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let service = authority.mint_for("coordinator.widemap.internal", both).unwrap();
    let elsewhere =
        authority.mint_for("10.0.0.2", vec![ExtendedKeyUsagePurpose::ServerAuth]).unwrap();
    let mut paths = Vec::new();
    for (name, leaf) in [
        ("server", &server),
        ("client", &client),
        ("address", &by_address),
        ("elsewhere", &elsewhere),
        ("service", &service),
    ] {
        paths.push((
            save(name, &leaf.certificate.pem()),
            save(&format!("{name}-key"), &leaf.key.serialize_pem()),
        ));
    }
    let find = |pair: &(PathBuf, PathBuf), ca: &PathBuf, role| {
        let wanted = crate::Wanted {
            key: None,
            certificate: Some(pair.0.clone()),
            private_key: Some(pair.1.clone()),
            authority: Some(ca.clone()),
        };
        Identity::find(&wanted, role).map(|found| found.expect("it was asked for"))
    };
    let coordinator = find(&paths[1], &ca, Role::Coordinator).unwrap();
    for pair in [&paths[0], &paths[2]] {
        let worker = find(pair, &ca, Role::Worker).unwrap();
        assert_eq!(shake(&coordinator, &worker), (Ok(()), Ok(Role::Coordinator)));
    }
    let worker = find(&paths[3], &ca, Role::Worker).unwrap();
    assert_eq!(shake(&coordinator, &worker).0, Err(Distrust::OtherName));
    let service = find(&paths[4], &ca, Role::Service).unwrap();
    let dialled = shake_by(coordinator.client_of_service().unwrap(), &service);
    assert_eq!(dialled, (Ok(()), Ok(Role::Coordinator)));
    let stranger = find(&(stranger_file, stranger_key), &other_ca, Role::Coordinator).unwrap();
    let by_name = find(&paths[0], &ca, Role::Worker).unwrap();
    let apart = (Err(Distrust::OtherAuthority), Err(Distrust::RefusesAuthority));
    assert_eq!(shake(&stranger, &by_name), apart);
    // Whoever has a key is told so, and whoever has certificates of them.
    let (client, server) = shake(&stranger, &identity(&[&key], Role::Worker));
    assert_eq!((client, server), apart);
    let mixed = (Err(Distrust::OtherKey), Err(Distrust::RefusesUs));
    assert_eq!(shake(&identity(&[&new_key()], Role::Coordinator), &by_name), mixed);
    let crossed = (paths[0].0.clone(), paths[1].1.clone());
    for (problem, found) in [
        ("not for a client", find(&paths[0], &ca, Role::Coordinator)),
        ("not for a server and a client", find(&paths[0], &ca, Role::Service)),
        ("not for a server", find(&paths[1], &ca, Role::Worker)),
        ("not signed by the authority", find(&paths[0], &other_ca, Role::Worker)),
        ("not the private key of", find(&crossed, &ca, Role::Worker)),
        (
            "a certificate in PEM form",
            find(&(paths[0].1.clone(), paths[0].1.clone()), &ca, Role::Worker),
        ),
        (
            "a private key in PEM form",
            find(&(paths[0].0.clone(), paths[0].0.clone()), &ca, Role::Worker),
        ),
    ] {
        let error = found.unwrap_err().to_string();
        assert!(error.contains(problem), "{problem}: {error}");
    }
}
