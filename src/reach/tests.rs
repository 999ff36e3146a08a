use tokio::net::TcpListener;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

fn at(address: SocketAddr) -> GatewayAddress {
    GatewayAddress { address: Address::Ip(address.ip()), port: address.port() }
}

fn plan(gateways: &[&GatewayAddress]) -> Arc<Plan> {
    let gateways = gateways.iter().map(|gateway| (*gateway).clone()).collect();
    Arc::new(Plan { gateways, ..Plan::default() })
}

struct Running {
    plans: watch::Sender<Arc<Plan>>,
    leading: watch::Sender<bool>,
    reached: watch::Receiver<Reached>,
    cancel: CancellationToken,
}

fn start(every: Duration) -> Running {
    start_as(every, false)
}

fn start_as(every: Duration, serves_clients: bool) -> Running {
    let (plans, planned) = watch::channel(Arc::default());
    let (leading, leads) = watch::channel(true);
    let (sender, reached) = watch::channel(Reached::default());
    let cancel = CancellationToken::new();
    let trier = Trier { every, plans: planned, leading: leads, serves_clients, reached: sender };
    tokio::spawn(trier.run(cancel.clone()));
    Running { plans, leading, reached, cancel }
}

impl Running {
    async fn says(&mut self, what: impl Fn(&Reached) -> bool) -> Reached {
        let said = tokio::time::timeout(DEADLINE, self.reached.wait_for(|reached| what(reached))).await;
        Arc::clone(&said.unwrap().unwrap())
    }
}

#[tokio::test]
async fn a_gateway_that_goes_is_lost_and_one_that_comes_back_is_found() {
    let mut running = start(Duration::from_millis(30));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = at(address);
    running.plans.send_replace(plan(&[&gateway]));
    let is = |attempt| {
        move |reached: &Reached| reached.values().all(|one| one.last == attempt) && !reached.is_empty()
    };
    running.says(is(Attempt::Answered)).await;
    drop(listener);
    let lost = running.says(is(Attempt::Refused)).await;
    assert!(lost.get(&gateway).unwrap().has_answered);
    let listener = TcpListener::bind(address).await.unwrap();
    running.says(is(Attempt::Answered)).await;
    drop(listener);
    running.cancel.cancel();
}

/// Each replica tells its own xDS clients which gateways are down.
#[tokio::test]
async fn who_serves_clients_tries_though_another_leads() {
    let mut running = start_as(Duration::from_millis(30), true);
    running.leading.send_replace(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    running.plans.send_replace(plan(&[&at(listener.local_addr().unwrap())]));
    running.says(|reached| reached.values().any(|one| one.last == Attempt::Answered)).await;
    running.cancel.cancel();
}

#[tokio::test]
async fn nothing_is_dialled_by_one_that_does_not_lead_or_that_no_plan_names() {
    let mut running = start(Duration::from_millis(30));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = at(listener.local_addr().unwrap());
    running.plans.send_replace(plan(&[&gateway]));
    running.says(|reached| reached.len() == 1).await;
    running.leading.send_replace(false);
    running.says(|reached| reached.is_empty()).await;
    let connected = async || loop {
        // what was under way may still come in
        drop(listener.accept().await.unwrap());
    };
    let _ = tokio::time::timeout(Duration::from_millis(100), connected()).await;
    assert!(tokio::time::timeout(Duration::from_millis(300), listener.accept()).await.is_err());
    running.leading.send_replace(true);
    running.says(|reached| reached.len() == 1).await;
    running.plans.send_replace(plan(&[]));
    running.says(|reached| reached.is_empty()).await;
}

#[tokio::test]
async fn tries_are_paced_and_bounded() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = at(listener.local_addr().unwrap());
    let mut known: BTreeMap<GatewayAddress, Known> = (1..=2 * AT_ONCE)
        .map(|port| {
            (GatewayAddress { port: u16::try_from(port).unwrap(), ..gateway.clone() }, Instant::now())
        })
        .map(|(gateway, now)| (gateway, Known { tried: None, due: Some(now) }))
        .collect();
    let mut trying = JoinSet::new();
    assert_eq!(begin(&mut known, &mut trying), None, "there is no room");
    assert_eq!(trying.len(), AT_ONCE);
    begin(&mut known, &mut trying);
    assert_eq!(trying.len(), AT_ONCE);
    let later = Instant::now() + Duration::from_secs(5);
    let mut known = BTreeMap::from([(gateway, Known { tried: None, due: Some(later) })]);
    let mut trying = JoinSet::new();
    assert_eq!(begin(&mut known, &mut trying), Some(later));
    assert_eq!(trying.len(), 0);
}

/// A peer whose name leads to what it may not name itself has us dial nothing.
#[tokio::test]
async fn a_name_that_leads_inside_is_not_dialled() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(first(vec![address]).await, Attempt::NotAdmitted);
    assert_eq!(first(vec!["169.254.169.254:80".parse().unwrap()]).await, Attempt::NotAdmitted);
    assert_eq!(first(Vec::new()).await, Attempt::NoAddress);
    let name = GatewayAddress { address: Address::Dns("localhost".to_owned()), port: address.port() };
    assert_eq!(attempt(&name).await, Attempt::NotAdmitted);
    assert!(tokio::time::timeout(Duration::from_millis(50), listener.accept()).await.is_err());
    let nowhere = GatewayAddress { address: Address::Dns("gateway.invalid".to_owned()), port: 1 };
    assert_eq!(attempt(&nowhere).await, Attempt::NoAddress);
}
