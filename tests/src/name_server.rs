//! A name server that says what a test has it say, by UDP.
// A panic in here is a failed test, which is what it is for.
#![allow(clippy::missing_panics_doc)]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::SRV;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// A record: its name, and what it says.
type Records = HashMap<String, Vec<RData>>;

/// The name server.
#[derive(Debug)]
pub struct NameServer {
    /// Where it is asked.
    pub address: SocketAddr,
    records: Arc<Mutex<Option<Records>>>,
    asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl NameServer {
    /// One that knows no name; all that it says is good for `ttl` seconds.
    pub async fn start(ttl: u32) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = socket.local_addr().expect("it is bound");
        let records: Arc<Mutex<Option<Records>>> = Arc::new(Mutex::new(Some(HashMap::new())));
        let asked = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let (known, count) = (records.clone(), asked.clone());
        tasks.spawn(async move {
            let mut bytes = [0; 4096];
            while let Ok((length, client)) = socket.recv_from(&mut bytes).await {
                count.fetch_add(1, Ordering::Relaxed);
                let answer = known
                    .lock()
                    .expect("no panic")
                    .as_ref()
                    .map(|known| answer(&bytes[..length], known, ttl));
                if let Some(answer) = answer {
                    let _ = socket.send_to(&answer, client).await;
                }
            }
        });
        Self { address, records, asked, _tasks: tasks }
    }

    /// Questions that it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// A name has these addresses from now on.
    pub fn set_addresses(&self, name: &str, addresses: &[&str]) {
        let data = addresses.iter().map(|address| match address.parse().expect("an address") {
            IpAddr::V4(address) => RData::A(address.into()),
            IpAddr::V6(address) => RData::AAAA(address.into()),
        });
        self.set(name, data.collect());
    }

    /// A name has these services from now on: port and host.
    pub fn set_services(&self, name: &str, services: &[(u16, &str)]) {
        let service = |(port, host): &(u16, &str)| {
            RData::SRV(SRV::new(0, 0, *port, Name::from_ascii(format!("{host}.")).expect("a name")))
        };
        self.set(name, services.iter().map(service).collect());
    }

    fn set(&self, name: &str, data: Vec<RData>) {
        let mut records = self.records.lock().expect("no panic");
        records.get_or_insert_default().insert(format!("{name}."), data);
    }

    /// It says nothing any more, until something is set.
    pub fn fall_silent(&self) {
        *self.records.lock().expect("no panic") = None;
    }
}

fn answer(question: &[u8], known: &Records, ttl: u32) -> Vec<u8> {
    let question = Message::from_vec(question).expect("a question");
    let query = question.queries.first().expect("a question").clone();
    let name = query.name().to_ascii().to_ascii_lowercase();
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.recursion_desired = true;
    answer.metadata.recursion_available = true;
    match known.get(&name) {
        None => answer.metadata.response_code = ResponseCode::NXDomain,
        Some(all) => {
            let is_wanted = |data: &&RData| data.record_type() == query.query_type();
            let record = |data: &RData| Record::from_rdata(query.name().clone(), ttl, data.clone());
            answer.add_answers(all.iter().filter(is_wanted).map(record));
        }
    }
    debug_assert!(query.query_type() != RecordType::ANY);
    answer.add_query(query);
    answer.to_vec().expect("an answer")
}
