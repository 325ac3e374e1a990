//! The names of the cluster: what Mesos-DNS and dcos-net answer. Authoritative for everything: an unknown name does not exist.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{RData, Record, RecordType, rdata::A},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

/// Host names in lower case without the final dot, and their addresses. A lock of the standard library: nobody awaits under it.
pub type Zone = Arc<RwLock<BTreeMap<String, Vec<Ipv4Addr>>>>;

/// Seconds for which an answer may be kept; Mesos-DNS says 60, and the tests do not wait that long.
const TTL: u32 = 1;

/// A TCP client that says nothing for so long is left.
const IDLE: Duration = Duration::from_secs(10);

/// Answers DNS queries on UDP and TCP until the task is dropped.
///
/// # Errors
/// The address is taken, or a socket failed for good.
pub async fn serve(zone: Zone, address: SocketAddr) -> io::Result<()> {
    let udp = UdpSocket::bind(address).await?;
    let tcp = TcpListener::bind(address).await?;
    tokio::try_join!(serve_udp(&zone, &udp), serve_tcp(&zone, &tcp))?;
    Ok(())
}

async fn serve_udp(zone: &Zone, socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 1500];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).await?;
        if let Some(answer) = answer(zone, &buffer[..length]) {
            // A client that is gone reports itself here as an ICMP error; that is its affair.
            let _ = socket.send_to(&answer, client).await;
        }
    }
}

async fn serve_tcp(zone: &Zone, listener: &TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let zone = zone.clone();
        tokio::spawn(async move {
            // An aborted connection concerns nobody else.
            let _ = tokio::time::timeout(IDLE, serve_connection(&zone, stream)).await;
        });
    }
}

async fn serve_connection(zone: &Zone, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut query = vec![0; usize::from(length)];
        stream.read_exact(&mut query).await?;
        let Some(answer) = answer(zone, &query) else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream.write_u16(length).await?;
        stream.write_all(&answer).await?;
    }
}

/// The answer to a query; none to what is no query.
fn answer(zone: &Zone, query: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries().first().filter(|_| query.message_type() == MessageType::Query)?;
    let mut response = Message::new();
    response
        .set_id(query.id())
        .set_message_type(MessageType::Response)
        .set_op_code(query.op_code())
        .set_authoritative(true)
        .set_recursion_desired(query.recursion_desired())
        .set_recursion_available(true)
        .add_query(question.clone());
    let name = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    match zone.read().unwrap_or_else(PoisonError::into_inner).get(&name) {
        None => {
            response.set_response_code(ResponseCode::NXDomain);
        }
        Some(addresses) if question.query_type() == RecordType::A => {
            for address in addresses {
                response.add_answer(Record::from_rdata(question.name().clone(), TTL, RData::A(A(*address))));
            }
        }
        // The name exists but has no such record, as AAAA.
        Some(_) => {}
    }
    response.to_vec().ok()
}
